"""LabelMe: shapes, paths, and what may be wrong."""

import base64
import json
import math

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mmgrc.conversion.folder import Folder
from mmgrc.conversion.formats import detect_format
from mmgrc.runs.error import InputError
from tests.helpers.foreign_formats import Scene, write_image
from tests.helpers.readers import read_source


def put(root, *shapes, image='1.png', name='1', **more):
    write_image(root / 'images' / '1.png', Scene('1.png', 40, 30, []))
    (root / 'labels').mkdir(exist_ok=True)
    content = {'shapes': list(shapes), 'imagePath': image, 'imageWidth': 40, 'imageHeight': 30, **more}
    (root / 'labels' / f'{name}.json').write_text(json.dumps(content))


def shape(kind, *points, label='a', **more):
    return {'label': label, 'shape_type': kind, 'points': [list(point) for point in points], **more}


def test_shapes(tmp_path):
    put(
        tmp_path,
        shape('circle', (20, 15), (23, 19), label='b'),
        shape('rectangle', (1, 2), (11, 2), (11, 12), (1, 12)),
        shape('oriented_rectangle', (5, 0), (10, 5), (5, 10), (0, 5)),
        shape('line', (1, 1), (5, 5)),
        shape('point', (1, 1)),
        shape('point', (2, 2)),
        # Old files have no type.
        {'label': 'a', 'points': [[1, 1], [9, 1], [9, 9]]},
    )
    found, folder = read_source('labelme', tmp_path)
    assert detect_format(folder) == 'labelme'
    circle, box, rotated, polygon = found.images[0].shapes
    np.testing.assert_allclose([math.dist(point, (20, 15)) for point in circle.polygon], 5)
    assert box.corners.tolist() == [[1, 2], [11, 2], [11, 12], [1, 12]]
    assert rotated.corners.tolist() == [[5, 0], [10, 5], [5, 10], [0, 5]]
    assert polygon.polygon.tolist() == [[1, 1], [9, 1], [9, 9]]
    assert found.classes == ['a', 'b']
    assert {reason: len(where) for reason, where in folder.skipped.items()} == {
        'shapes of type line': 1,
        'shapes of type point': 2,
    }


@pytest.mark.parametrize(
    'image', ['1.png', '../images/1.png', '..\\images\\1.png', '/home/other/1.png', 'C:\\data\\1.png', '']
)
def test_paths_of_images(image, tmp_path):
    put(tmp_path, image=image)
    found, _ = read_source('labelme', tmp_path)
    assert found.images[0].path == tmp_path / 'images' / '1.png'


def test_classes_in_the_order_of_the_list(tmp_path):
    put(tmp_path, shape('circle', (20, 15), (23, 19), label='b'))
    (tmp_path / 'labels.txt').write_text('__ignore__\n_background_\nz\nb\n')
    assert read_source('labelme', tmp_path)[0].classes == ['z', 'b']


def test_images_elsewhere(tmp_path):
    put(tmp_path, image='../images/1.png')
    with pytest.raises(InputError, match=r'^paths that lead out of .*labels \(1\): \.\./images/1\.png \(in 1\.json\)'):
        read_source('labelme', tmp_path / 'labels')
    found, _ = read_source('labelme', tmp_path / 'labels', tmp_path / 'images')
    assert found.images[0].path == tmp_path / 'images' / '1.png'


def test_the_same_name_in_two_folders(tmp_path):
    put(tmp_path, image='images/1.png')
    write_image(tmp_path / 'more' / 'images' / '1.png', Scene('1.png', 40, 30, []))
    assert read_source('labelme', tmp_path)[0].images[0].path == tmp_path / 'images' / '1.png'
    put(tmp_path, image='1.png')
    with pytest.raises(
        InputError, match=r'^names of images that several folders have \(1\): 1\.png \(images/1\.png, more/images'
    ):
        read_source('labelme', tmp_path)


def test_masks(tmp_path):
    part = np.zeros((5, 7), np.uint8)
    part[1:3, 2:6] = 255
    content = base64.b64encode(cv2.imencode('.png', part)[1].tobytes()).decode()
    put(tmp_path, shape('mask', (10, 20), (16, 24), mask=content, group_id=3))
    (found,) = read_source('labelme', tmp_path)[0].images[0].shapes
    whole = np.zeros((30, 40), np.uint8)
    whole[20:25, 10:17] = part > 0
    np.testing.assert_array_equal(coco_mask.decode(found.mask), whole)
    assert found.group == 3
    put(tmp_path, shape('mask', (30, 28), (36, 32), mask=content))
    with pytest.raises(InputError, match=r'shape 1 is a mask that is no PNG image, or is larger than its image'):
        read_source('labelme', tmp_path)


@pytest.mark.parametrize(
    ('bad', 'words'),
    [
        (shape('circle', (1, 1)), 'shape 1 is a circle with 1 points'),
        (shape('rectangle', (1, 1)), 'shape 1 is a rectangle with 1 points'),
        (shape('polygon', (1, 1), (math.nan, 2), (3, 3)), r'shape 1 \(a\): its coordinates are .*with nan'),
        (shape('circle', (1, 1), (1e300, 2)), r'shape 1 \(a\): its coordinates are .*with 1e\+300'),
        (shape('polygon', (1, 1), (2, 2), (3, -401)), 'shape 1 .*at most 10 times the size of the image'),
        (shape('polygon', (1, 1), group_id=[1]), r'shape 1 has the group_id \[1\]\. It must be a number or text'),
        ({'label': 'a'}, r'shape 1 \(a\): its coordinates are None'),
        ({'label': 'a', 'points': 'x'}, r'shape 1 \(a\): its coordinates are x'),
        ({'label': 'a', 'points': [1, 2, 3]}, r'shape 1 \(a\): cannot reshape'),
        ({'label': 3, 'points': [[1, 2]]}, 'shape 1 has the label 3. It must be text'),
        ('text', "shape 1 is 'text', and has no label and no points"),
        (shape('mask', (1, 1), (2, 2), mask='???'), 'shape 1 is a mask that is no PNG image'),
    ],
)
def test_broken_shapes(bad, words, tmp_path):
    put(tmp_path, bad)
    with pytest.raises(InputError, match=rf'^broken annotation files \(1\): labels/1\.json: {words}'):
        read_source('labelme', tmp_path)


def test_sizes_as_text(tmp_path):
    put(tmp_path, imageWidth='40', imageHeight='30')
    found, _ = read_source('labelme', tmp_path)
    assert (found.images[0].width, found.images[0].height) == (40, 30)
    put(tmp_path, imageWidth=-40)
    with pytest.raises(InputError, match=r'labels/1\.json: the size of images/1\.png is \[-40, 30\], not two numbers'):
        read_source('labelme', tmp_path)


def test_broken_files(tmp_path):
    put(tmp_path)
    for name in 'abcdefg':
        (tmp_path / 'labels' / f'{name}.json').write_text('{"shapes": [')
    with pytest.raises(InputError, match=r'^broken annotation files \(7\): labels/a\.json: it is not JSON.*; \.\.\.\.'):
        read_source('labelme', tmp_path)


def test_missing_and_broken_images(tmp_path):
    put(tmp_path, image='nothing.png', name='2')
    put(tmp_path, name='1')
    (tmp_path / 'images' / '1.png').write_text('no image')
    with pytest.raises(
        InputError,
        match=r'images missing in .* \(1\): nothing\.png \(in labels/2\.json\).* images that cannot be read \(1\)',
    ):
        read_source('labelme', tmp_path)


def test_a_truncated_image(tmp_path):
    """Its header has the size, so only its end tells."""
    put(tmp_path, image='1.jpg')
    path = tmp_path / 'images' / '1.jpg'
    write_image(path, Scene('1.jpg', 40, 30, []))
    read_source('labelme', tmp_path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r'^images that cannot be read \(1\): .*1\.jpg is truncated: .* Replace them'):
        read_source('labelme', tmp_path)


def test_other_json_files(tmp_path):
    put(tmp_path)
    (tmp_path / 'notes.json').write_text('{}')
    found, folder = read_source('labelme', tmp_path)
    assert len(found.images) == 1
    assert folder.skipped == {'JSON files that are not of LabelMe': ['notes.json']}
    assert detect_format(Folder(tmp_path)) == 'labelme'
    assert detect_format(Folder(tmp_path / 'labels' / '1.json')) == 'labelme'
