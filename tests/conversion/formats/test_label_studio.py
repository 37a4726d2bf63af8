"""Label Studio: percentages, rotations, brushes, several annotators, and what may be wrong."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from mmgrc.conversion.folder import Folder
from mmgrc.conversion.formats import detect_format
from mmgrc.conversion.formats.label_studio import decode_brush
from mmgrc.runs.error import InputError
from tests.helpers.foreign_formats import Scene, brush_bytes, label_studio_task, write_image
from tests.helpers.readers import read_source

SCENE = Scene('1.png', 40, 20, [])


def put(root, *results, change=None, image=None):
    write_image(root / 'images' / '1.png', SCENE)
    task = label_studio_task(1, SCENE, results, image)
    if change:
        change(task)
    (root / 'export.json').write_text(json.dumps([task]))


def result(kind, *labels, **value):
    return {'type': kind, 'value': {**value, kind: list(labels)}}


def test_shapes(tmp_path):
    put(
        tmp_path,
        result('rectanglelabels', 'b', x=25, y=25, width=50, height=25, rotation=90),
        result('ellipselabels', 'a', x=50, y=50, radiusX=25, radiusY=10, rotation=0),
        result('polygonlabels', 'a', points=[[0, 0], [50, 0], [50, 50]]),
        result('keypointlabels', 'a', x=1, y=1, width=0.3),
        {'type': 'choices', 'value': {'choices': ['night']}},
        result('rectanglelabels', x=25, y=25, width=50, height=25),
    )
    found, folder = read_source('labelstudio', tmp_path)
    assert detect_format(folder) == 'labelstudio'
    assert found.classes == ['a', 'b']
    box, ellipse, polygon = found.images[0].shapes
    # 20 x 5 pixels at (10, 5), rotated by a quarter around this corner.
    np.testing.assert_allclose(box.corners, [[10, 5], [10, 25], [5, 25], [5, 5]], atol=1e-9)
    low, high = ellipse.polygon.min(axis=0), ellipse.polygon.max(axis=0)
    np.testing.assert_allclose([*low, *high], [10, 8, 30, 12], atol=0.15)
    assert polygon.polygon.tolist() == [[0, 0], [20, 0], [20, 10]]
    assert {reason: len(where) for reason, where in folder.skipped.items()} == {
        'results of type keypointlabels': 1,
        'results of type choices': 1,
        'shapes without a label': 1,
    }


def test_a_label_in_a_result_of_its_own(tmp_path):
    """With `<Rectangle>` and `<Labels>` the shape and its label are two results with the same id."""
    value = {'x': 0, 'y': 0, 'width': 50, 'height': 50, 'rotation': 0}
    put(
        tmp_path,
        {'id': 'r', 'type': 'rectangle', 'value': value},
        {'id': 'r', 'type': 'labels', 'value': {**value, 'labels': ['a', 'b']}},
    )
    shapes = read_source('labelstudio', tmp_path)[0].images[0].shapes
    # Two labels, two objects.
    assert [shape.label for shape in shapes] == ['a', 'b']
    assert shapes[0].corners.tolist() == [[0, 0], [20, 0], [20, 10], [0, 10]]


def test_the_ground_truth_of_several_annotations(tmp_path):
    def change(task):
        first = task['annotations'][0]
        values = (
            (False, '2026-01-03', 'newest', False),
            (True, '2026-01-01', 'truth', False),
            (True, '2026-01-09', 'no', True),
        )
        task['annotations'] = [
            {
                **first,
                'ground_truth': truth,
                'updated_at': date,
                'was_cancelled': cancelled,
                'result': [result('rectanglelabels', label, x=0, y=0, width=50, height=50)],
            }
            for truth, date, label, cancelled in values
        ]

    put(tmp_path, change=change)
    found, folder = read_source('labelstudio', tmp_path)
    assert [shape.label for shape in found.images[0].shapes] == ['truth']
    assert folder.skipped == {'further annotations of a task': ['task 1']}


@pytest.mark.parametrize(
    'image',
    [
        '/data/upload/1/0a1b2c3d-1.png',
        '/data/local-files/?d=images/1.png',
        's3://bucket/folder/1.png',
        'https://host/1.png?token=abc',
    ],
)
def test_addresses_of_images(image, tmp_path):
    put(tmp_path, image=image)
    assert read_source('labelstudio', tmp_path)[0].images[0].path == tmp_path / 'images' / '1.png'


def test_a_brush_of_label_studio(tmp_path):
    """Bytes that label-studio-sdk 2.1.2 wrote (`label_studio_sdk.converter.brush.encode_rle`)."""
    mask = np.zeros((6, 9), bool)
    mask[1:5, 2:7] = True
    mask[2, 3] = False
    mask[5, 8] = True
    content = [0, 0, 0, 216, 57, 27, 254, 43, 0, 194, 127, 247, 192, 35, 255, 140, 2, 223, 253, 240, 12, 39, 255, 124]
    content += [3, 9, 255, 226, 112, 8, 255, 192]
    np.testing.assert_array_equal(decode_brush(content, (9, 6)), mask)


@given(seed=st.integers(0, 2**31), share=st.floats(0, 1), height=st.integers(1, 30), width=st.integers(1, 30))
@settings(deadline=None)
def test_any_brush(seed, share, height, width):
    mask = np.random.default_rng(seed).random((height, width)) < share
    np.testing.assert_array_equal(decode_brush(brush_bytes(mask), (width, height)), mask)


def test_brushes_of_an_image(tmp_path):
    mask = np.zeros((20, 40), bool)
    mask[3:9, 5:20] = True
    put(tmp_path, result('brushlabels', 'a', format='rle', rle=brush_bytes(mask)))
    (shape,) = read_source('labelstudio', tmp_path)[0].images[0].shapes
    np.testing.assert_array_equal(coco_mask.decode(shape.mask), mask)


def test_an_image_that_was_rotated(tmp_path):
    put(tmp_path, {**result('rectanglelabels', 'a', x=0, y=0, width=50, height=50), 'image_rotation': 90})
    found, folder = read_source('labelstudio', tmp_path)
    assert found.images[0].shapes == []
    assert folder.skipped == {'shapes on an image that was rotated in Label Studio': ['task 1']}


@pytest.mark.parametrize(
    ('bad', 'words'),
    [
        (result('rectanglelabels', 'a', x=0, y=0, width='wide', height=3), "its coordinates are .*'wide', 3"),
        (result('rectanglelabels', 'a', x=0, y=0, width=3), 'its coordinates are .*3, None'),
        (result('rectanglelabels', 'a', x=0, y=0, width=3, height=3, rotation=math.inf), 'its rotation is inf'),
        (result('ellipselabels', 'a', x=1, y=1, radiusX=1001, radiusY=3), 'at most 10 times the size of the image'),
        (result('rectanglelabels', {'a': 1}, x=0, y=0, width=3, height=3), 'its labels are .* They must be text'),
        (result('brushlabels', 'a', rle=10**9), 'its run lengths are 1000000000, not a list'),
        (result('rectanglelabels', 'a', x=math.inf, y=0, width=3, height=3), 'its coordinates are'),
        (result('polygonlabels', 'a', points=[[1, 2], [3]]), ''),
        (result('polygonlabels', 'a', points=[[1, 2, 3]]), 'its points are'),
        (result('brushlabels', 'a', rle=brush_bytes(np.ones((20, 40), bool))[:-2]), 'its run lengths are truncated'),
        (result('brushlabels', 'a', rle=brush_bytes(np.ones((4, 4), bool))), 'its run lengths are of 64 values'),
        (result('brushlabels', 'a', rle=[0, 0, 12, 128, 255, 255]), 'its values have 32 bits'),
        (result('brushlabels', 'a', rle=[1, 2, 300]), ''),
    ],
)
def test_broken_results(bad, words, tmp_path):
    put(tmp_path, bad)
    with pytest.raises(
        InputError, match=rf'^broken annotation files \(1\): export\.json: task 1: result r0 cannot .*{words}'
    ):
        read_source('labelstudio', tmp_path)


@pytest.mark.parametrize(
    ('data', 'words'),
    [({'text': 'hello'}, 'task 1 has no image'), ({'a': '1.png', 'b': '2.png'}, 'task 1 has 2 images')],
)
def test_tasks_without_one_image(data, words, tmp_path):
    put(tmp_path, change=lambda task: task.update(data=data))
    with pytest.raises(InputError, match=rf'export\.json: {words}'):
        read_source('labelstudio', tmp_path)


def test_missing_images(tmp_path):
    put(tmp_path, image='/data/upload/1/2.png')
    with pytest.raises(InputError, match=r'images missing in .* \(1\): .*2\.png \(in export\.json\)'):
        read_source('labelstudio', tmp_path)


def test_the_short_export(tmp_path):
    """JSON-MIN is another format, and the message names the one that is needed."""
    (tmp_path / 'export.json').write_text(json.dumps([{'image': '1.png', 'id': 1, 'label': []}]))
    with pytest.raises(InputError, match='of Label Studio the export must be "JSON"'):
        detect_format(Folder(tmp_path))
