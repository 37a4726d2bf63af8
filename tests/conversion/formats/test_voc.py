"""Layouts of Pascal VOC, its masks and splits, and what may be wrong in them."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mmgrc.conversion.folder import Folder
from mmgrc.conversion.formats import detect_format
from mmgrc.runs.error import InputError
from tests.helpers.foreign_formats import Scene, voc_xml, write_image
from tests.helpers.readers import read_source

pytest.importorskip('defusedxml', reason='to read XML, defusedxml is needed')

SCENE = Scene('1.jpg', 40, 30, [])


def put(root, *objects, name='1', scene=SCENE):
    scene = scene._replace(name=f'{name}.jpg')
    write_image(root / 'JPEGImages' / scene.name, scene)
    (root / 'Annotations').mkdir(exist_ok=True)
    (root / 'Annotations' / f'{name}.xml').write_text(voc_xml(scene, objects))


def test_pixels_count_from_one(tmp_path):
    """The whole image is 1, 1, width, height."""
    put(
        tmp_path,
        ('dog', (1, 1, 40, 30), '<difficult>1</difficult><part><name>head</name></part>'),
        ('cat', (3, 3, 3, 3), ''),
    )
    found, folder = read_source('voc', tmp_path)
    assert detect_format(folder) == 'voc'
    assert found.classes == ['cat', 'dog']
    dog, cat = found.images[0].shapes
    assert dog.corners.tolist() == [[0, 0], [40, 0], [40, 30], [0, 30]]
    assert (dog.crowd, cat.crowd) == (True, False)
    assert cat.corners.tolist() == [[2, 2], [3, 2], [3, 3], [2, 3]]
    assert folder.notes == ['coordinates count from 1, as in the devkit of VOC']


@pytest.mark.parametrize('box', [(0, 4, 10, 20), (2.5, 4, 10, 20)])
def test_pixels_count_from_zero(box, tmp_path):
    """One such coordinate tells it for the whole data set."""
    put(tmp_path, ('dog', (5, 6, 10, 20), ''))
    put(tmp_path, ('dog', box, ''), name='2')
    found, folder = read_source('voc', tmp_path)
    assert found.images[0].shapes[0].corners[0].tolist() == [5, 6]
    assert folder.notes == ['coordinates count from 0']


def make_lists(folder):
    """The folder for lists of splits."""
    lists = folder / 'ImageSets' / 'Main'
    lists.mkdir(parents=True)
    return lists


def test_lists_of_splits(tmp_path):
    for name in 'abcd':
        put(tmp_path, ('dog', (1, 1, 9, 9), ''), name=name)
    lists = make_lists(tmp_path)
    (lists / 'trainval.txt').write_text('a\nb\nc\n')
    # A list of one class.
    (lists / 'dog_train.txt').write_text('a  1\n')
    found, folder = read_source('voc', tmp_path)
    assert [image.split for image in found.images] == [None, None, None]
    assert folder.skipped == {'images in no list of ImageSets/Main': ['JPEGImages/d.jpg']}
    (lists / 'train.txt').write_text('a\n')
    (lists / 'val.txt').write_text('b\n')
    (lists / 'test.txt').write_text('d\n')
    found, _ = read_source('voc', tmp_path)
    assert {image.path.stem: image.split for image in found.images} == {'a': 'train', 'b': 'val', 'd': 'test'}


def test_names_with_spaces_in_lists(tmp_path):
    """1, 0 or -1 after a name says whether the image has a class. It may also be a part of the name."""
    for name in ('IMG 2024', 'IMG 2024 1', 'b  c', 'd', 'e 1'):
        put(tmp_path, ('dog', (1, 1, 9, 9), ''), name=name)
    lists = make_lists(tmp_path)
    (lists / 'train.txt').write_text('IMG 2024 1\nb  c  -1\nd\t0\n')
    (lists / 'val.txt').write_text('IMG 2024 -1\ne 1\nno file\nno file either  1\n')
    found, folder = read_source('voc', tmp_path)
    splits = {image.path.stem: image.split for image in found.images}
    assert splits == {'IMG 2024': 'val', 'IMG 2024 1': 'train', 'b  c': 'train', 'd': 'train', 'e 1': 'val'}
    assert folder.skipped == {
        'names in ImageSets/Main without an annotation file': ['no file (val.txt)', 'no file either (val.txt)']
    }


def test_folders_of_splits(tmp_path):
    """As Roboflow writes it: each XML file beside its image."""
    for split, name in (('train', 'a'), ('valid', 'b')):
        write_image(tmp_path / split / f'{name}.jpg', SCENE)
        xml = voc_xml(SCENE._replace(name=f'{name}.jpg'), [('dog', (1, 1, 9, 9), '')])
        (tmp_path / split / f'{name}.xml').write_text(xml)
    found, _ = read_source('voc', tmp_path)
    assert [image.split for image in found.images] == ['train', 'val']


def test_classes_in_the_order_of_the_label_map(tmp_path):
    put(tmp_path, ('dog', (1, 1, 9, 9), ''))
    (tmp_path / 'labelmap.txt').write_text(
        '# label:color_rgb:parts:actions\nbackground:0,0,0::\ndog:1,2,3::\ncat:4,5,6::\n'
    )
    assert read_source('voc', tmp_path)[0].classes == ['dog', 'cat']


@pytest.mark.parametrize('kind', ['numbers', 'colours'])
def test_masks_go_to_their_boxes(kind, tmp_path):
    """The masks have other numbers than the objects: boxes decide. Pixels of the border belong to none."""
    numbers = np.zeros((30, 40), np.uint8)
    numbers[2:12, 3:13], numbers[15:25, 20:38] = 2, 1
    numbers[15:25, 20] = 255
    put(tmp_path, ('dog', (4, 3, 13, 12), ''), ('cat', (21, 16, 38, 25), ''), ('cow', (1, 28, 3, 30), ''))
    (tmp_path / 'SegmentationObject').mkdir()
    picture = numbers
    if kind == 'colours':
        # VOC's palette, BGR.
        picture = np.zeros((30, 40, 3), np.uint8)
        for number, colour in ((1, (0, 0, 128)), (2, (0, 128, 0)), (255, (192, 224, 224))):
            picture[numbers == number] = colour
    cv2.imwrite(str(tmp_path / 'SegmentationObject' / '1.png'), picture)
    dog, cat, cow = read_source('voc', tmp_path)[0].images[0].shapes
    np.testing.assert_array_equal(coco_mask.decode(dog.mask), numbers == 2)
    np.testing.assert_array_equal(coco_mask.decode(cat.mask), numbers == 1)
    assert cow.mask is None


def test_masks_that_fit_no_box(tmp_path):
    put(tmp_path, ('dog', (4, 3, 13, 12), ''))
    (tmp_path / 'SegmentationObject').mkdir()
    numbers = np.zeros((30, 40), np.uint8)
    numbers[20:25, 20:25] = 1
    cv2.imwrite(str(tmp_path / 'SegmentationObject' / '1.png'), numbers)
    found, folder = read_source('voc', tmp_path)
    assert found.images[0].shapes[0].mask is None
    assert folder.skipped == {'masks of SegmentationObject that fit no box': ['Annotations/1.xml (number 1)']}


def test_another_size_than_stated_is_left_out(tmp_path):
    put(tmp_path, ('dog', (4, 3, 13, 12), ''))
    put(tmp_path, ('dog', (4, 3, 13, 12), ''), name='2')
    path = tmp_path / 'Annotations' / '1.xml'
    path.write_text(path.read_text().replace('<width>40', '<width>80'))
    # labelImg writes 0 where it does not know.
    path = tmp_path / 'Annotations' / '2.xml'
    path.write_text(path.read_text().replace('<width>40', '<width>0'))
    found, folder = read_source('voc', tmp_path)
    assert [image.path.stem for image in found.images] == ['2']
    assert folder.skipped == {
        'images of another size than their annotations say': ['JPEGImages/1.jpg (40x30, not 80x30)']
    }


@pytest.mark.parametrize(
    ('before', 'after', 'words'),
    [
        ('</annotation>', '', 'it is not XML: no element found'),
        ('<name>dog</name>', '', 'object 1 has no name'),
        ('<xmin>4</xmin>', '', r"the box of object 1 \(dog\): its coordinates are \[None, '3', '13', '12'\]"),
        ('<xmin>4</xmin>', '<xmin>left</xmin>', 'the box of object 1'),
        ('<xmin>4</xmin>', '<xmin>nan</xmin>', 'the box of object 1'),
        ('<xmin>4</xmin>', '<xmin>30</xmin>', '.*: its sides are swapped'),
        ('<xmax>13</xmax>', '<xmax>401</xmax>', '.*at most 10 times the size of the image'),
        (
            '<width>40',
            '<width>wide',
            "the size of JPEGImages/1.jpg is ['wide', '30']".replace('[', r'\[').replace(']', r'\]'),
        ),
    ],
)
def test_broken_files(before, after, words, tmp_path):
    put(tmp_path, ('dog', (4, 3, 13, 12), ''))
    path = tmp_path / 'Annotations' / '1.xml'
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(InputError, match=rf'^broken annotation files \(1\): Annotations/1\.xml: {words}'):
        read_source('voc', tmp_path)


def test_missing_images(tmp_path):
    put(tmp_path, ('dog', (4, 3, 13, 12), ''))
    (tmp_path / 'JPEGImages' / '1.jpg').unlink()
    with pytest.raises(InputError, match=r'images missing in .* \(1\): 1\.jpg \(in Annotations/1\.xml\)'):
        read_source('voc', tmp_path)


def test_a_path_out_of_the_folder(tmp_path):
    put(tmp_path / 'mine', ('dog', (4, 3, 13, 12), ''), scene=SCENE)
    write_image(tmp_path / 'secret' / '1.jpg', SCENE)
    path = tmp_path / 'mine' / 'Annotations' / '1.xml'
    path.write_text(path.read_text().replace('1.jpg', '../../secret/1.jpg'))
    with pytest.raises(InputError, match=r'^paths that lead out of .* \(1\): \.\./\.\./secret/1\.jpg'):
        read_source('voc', tmp_path / 'mine')


def test_entities_are_refused(tmp_path):
    """A bomb of a few hundred bytes would expand to gigabytes. And entities could read other files."""
    put(tmp_path, ('dog', (4, 3, 13, 12), ''))
    path = tmp_path / 'Annotations' / '1.xml'
    lines = ''.join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
    for declared in (f'<!ENTITY e0 "ha">{lines}', '<!ENTITY e11 SYSTEM "file:///etc/passwd">'):
        start = f'<?xml version="1.0"?><!DOCTYPE annotation [{declared}]>'
        path.write_text(start + voc_xml(SCENE, [('dog', (4, 3, 13, 12), '')]).replace('dog', '&e11;'))
        with pytest.raises(InputError, match=r'Annotations/1\.xml: it declares entities'):
            read_source('voc', tmp_path)


def test_masks_of_another_size(tmp_path):
    put(tmp_path, ('dog', (4, 3, 13, 12), ''))
    (tmp_path / 'SegmentationObject').mkdir()
    cv2.imwrite(str(tmp_path / 'SegmentationObject' / '1.png'), np.ones((10, 10), np.uint8))
    with pytest.raises(
        InputError, match=r'SegmentationObject/1\.png: it has 10 rows and 10 columns, its image 30 and 40'
    ):
        read_source('voc', tmp_path)
    (tmp_path / 'SegmentationObject' / '1.png').write_text('no image')
    with pytest.raises(InputError, match=r'SegmentationObject/1\.png: it cannot be read'):
        read_source('voc', tmp_path)


def test_an_empty_folder(tmp_path):
    with pytest.raises(InputError, match='is in none of the formats cvat, labelme, labelstudio, voc, yolo'):
        detect_format(Folder(tmp_path))
    with pytest.raises(InputError, match='there is no folder'):
        Folder(tmp_path / 'nothing')
