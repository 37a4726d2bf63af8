"""Ground truth and predictions on images of all kinds, and the messages if they do not fit."""

import json
import pickle

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mmgrc.runs.error import InputError
from mmgrc.visualization.detections import Drawn, draw_detections, draw_predictions, paint_detections
from mmgrc.visualization.predictions import class_colours, read_predictions, read_test_set

CLASSES, PALETTE = ('cat', 'dog'), [(0, 0, 255), (0, 255, 0)]
SQUARE = [20, 10, 30, 25]
"""Left, top, width and height of the object on each image."""


def rle(mask):
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


@pytest.fixture
def write_set(tmp_path):
    """Write a data set with one grey square on each image. Return its ground truth and equal predictions."""

    def write(sizes, **changes):
        x, y, w, h = SQUARE
        content = {
            'images': [],
            'annotations': [],
            'categories': [{'id': 7, 'name': 'dog'}, {'id': 3, 'name': 'cat'}, {'id': 4, 'name': 'not used'}],
        }
        predictions = []
        for i, (width, height) in enumerate(sizes, start=1):
            image = np.zeros((height, width, 3), np.uint8)
            image[y : y + h, x : x + w] = 128
            path = tmp_path / f'{i}.png'
            cv2.imwrite(str(path), image)
            content['images'].append({'id': i, 'file_name': path.name, 'width': width, 'height': height})
            content['annotations'].append(
                {
                    **{'id': i, 'image_id': i, 'category_id': 3, 'bbox': SQUARE, 'area': w * h},
                    'segmentation': [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    **changes,
                }
            )
            predictions.append(
                {
                    'img_id': i,
                    'img_path': str(path),
                    'ori_shape': (height, width),
                    'pred_instances': {
                        'bboxes': np.array([[x, y, x + w, y + h]], np.float32),
                        'labels': np.array([0]),
                        'scores': np.array([0.9]),
                        'masks': [rle(image[..., 0])],
                    },
                }
            )
        (tmp_path / 'truth.json').write_text(json.dumps(content))
        return COCO(str(tmp_path / 'truth.json')), predictions

    return write


def draw(truth, predictions, tmp_path, **options):
    notes = draw_predictions(predictions, truth, CLASSES, PALETTE, tmp_path / 'out.png', **options)
    return notes, cv2.imread(str(tmp_path / 'out.png')).astype(int)


def halves(picture):
    return np.split(picture[:, : picture.shape[1] // 2 * 2], 2, axis=1)


def count_grey(panel):
    """Pixels of the square without a mask."""
    return int(((panel.max(axis=2) - panel.min(axis=2) < 4) & (abs(panel[..., 0] - 128) < 4)).sum())


def count_blue(panel):
    """Pixels of the square with a mask of the first class."""
    return int((abs(panel - [172, 83, 83]) < 6).all(axis=2).sum())


def test_masks_lie_on_an_image_turned_by_its_camera(write_set, tmp_path):
    """The file stores the picture rotated. Loader, annotations and predictions use the upright one."""
    truth, predictions = write_set([(96, 64)])
    upright = Image.open(predictions[0]['img_path'])
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / '1.jpg', exif=exif.tobytes(), quality=100)
    predictions[0]['img_path'] = str(tmp_path / '1.jpg')
    notes, picture = draw(truth, predictions, tmp_path)
    assert notes == []
    left, right = halves(picture)
    # Part of the name's background and of the outline is over the square.
    assert count_blue(left) > 5000
    assert abs(count_blue(left) - count_blue(right)) < 0.1 * count_blue(left)
    assert count_grey(picture) < 100


def test_annotations_of_the_lying_image(write_set, tmp_path):
    """Width and height are swapped in the file. Polygons still fit, run lengths do not, and a message says so."""
    truth, predictions = write_set([(96, 64)])
    record = truth.imgs[1]
    record['width'], record['height'] = record['height'], record['width']
    notes, picture = draw(truth, predictions, tmp_path)
    assert notes == [f'{predictions[0]["img_path"]} has 96 x 64 pixels, but 64 x 96 in the annotations']
    assert count_blue(halves(picture)[0]) > 5000

    predictions[0]['ori_shape'] = (96, 64)
    predictions[0]['pred_instances']['masks'] = [rle(np.ones((96, 64)))]
    notes, picture = draw(truth, predictions, tmp_path)
    assert '64 x 96 in the annotations and 64 x 96 in the predictions; 1 masks do not fit it' in notes[0]
    left, right = halves(picture)
    assert count_grey(right) > 5000 > 100 > count_grey(left)


@pytest.mark.parametrize('compressed', [True, False])
def test_run_lengths_of_the_truth(write_set, tmp_path, compressed):
    mask = np.zeros((64, 96))
    mask[10:35, 20:50] = 1
    packed = rle(mask)
    counts = packed['counts'].decode()
    if not compressed:
        flat = mask.T.ravel()
        ends = np.flatnonzero(np.diff(flat)) + 1
        counts = np.diff([0, *ends, flat.size]).tolist()
    truth, predictions = write_set([(96, 64)], segmentation={'size': [64, 96], 'counts': counts})
    notes, picture = draw(truth, predictions, tmp_path)
    assert notes == []
    left, right = halves(picture)
    assert abs(count_blue(left) - count_blue(right)) < 500


@pytest.mark.parametrize('segmentation', [None, [], [[1, 2, 3, 4]]])
def test_annotations_without_an_outline(write_set, tmp_path, segmentation):
    truth, predictions = write_set([(96, 64)], segmentation=segmentation)
    notes, picture = draw(truth, predictions, tmp_path)
    assert notes == []
    assert count_grey(halves(picture)[0]) > 5000


def test_names_are_those_of_the_annotations_categories(write_set, tmp_path):
    """Whatever the order of the categories, and with one that the file lacks."""
    truth, predictions = write_set([(96, 64)])
    classes = ('parrot', 'cat', 'dog')
    palette = [(255, 0, 0), (0, 0, 255), (0, 255, 0)]
    draw_predictions(predictions, truth, classes, palette, tmp_path / 'out.png')
    assert count_blue(halves(cv2.imread(str(tmp_path / 'out.png')).astype(int))[0]) > 5000
    # An image without annotations, and annotations of a category that is not listed.
    truth.imgToAnns[1][0]['category_id'] = 99
    draw_predictions(predictions, truth, classes, palette, tmp_path / 'out.png')
    truth.imgToAnns.clear()
    draw_predictions(predictions, truth, classes, palette, tmp_path / 'out.png')
    assert count_blue(halves(cv2.imread(str(tmp_path / 'out.png')).astype(int))[0]) == 0


def test_images_of_several_sizes_and_some_that_are_gone(write_set, tmp_path):
    truth, predictions = write_set([(96, 64), (60, 300), (700, 50), (96, 64)])
    predictions[3]['img_path'] = '/nowhere/4.png'
    notes, picture = draw(truth, predictions, tmp_path)
    assert notes == ['/nowhere/4.png cannot be read: No such file or directory']
    assert picture.shape[0] < 5000
    assert count_blue(picture) > 1000
    with pytest.raises(ValueError, match='xyz'):
        draw_predictions(predictions, truth, CLASSES, PALETTE, tmp_path / 'out.xyz')
    with pytest.raises(ValueError, match=r'/nowhere/4\.png cannot be read'):
        draw(truth, predictions[3:], tmp_path)


def test_predictions_of_another_data_set(write_set, tmp_path):
    truth, predictions = write_set([(96, 64)])
    for change, message in {
        'img_id': (5, 'the annotations have no image 5'),
        'img_path': ('/data/dog.png', r'dog\.png is 1\.png in the annotations'),
        'pred_instances': (
            {**predictions[0]['pred_instances'], 'labels': np.array([2])},
            'predictions of label 2, but 2 classes',
        ),
    }.items():
        with pytest.raises(ValueError, match=message[1]):
            draw(truth, [{**predictions[0], change: message[0]}], tmp_path)


@pytest.mark.parametrize(('width', 'height'), [(1, 3000), (3000, 1), (20000, 3), (7, 5)])
def test_any_shape_is_drawn(tmp_path, width, height):
    image = np.full((height, width, 3), 90, np.uint8)
    objects = [Drawn(0, [0, 0, width, height], np.ones((height, width), bool), 0.5)]
    draw_detections(image, objects, CLASSES, PALETTE, tmp_path / 'out.jpg')
    drawn = cv2.imread(str(tmp_path / 'out.jpg'))
    assert 300 < max(drawn.shape) <= 8192
    assert min(drawn.shape[:2]) >= 10


def test_files_that_are_no_predictions(write_set, tmp_path):
    predictions = write_set([(96, 64)])[1]
    (tmp_path / 'good.pkl').write_bytes(pickle.dumps(predictions))
    assert read_predictions(tmp_path / 'good.pkl')[0]['img_id'] == 1
    for content, message in {
        pickle.dumps([]): 'is empty',
        pickle.dumps({'a': 1}): 'it is a dict, not a list',
        pickle.dumps([1]): 'an image has no img_id and no img_path and no pred_instances',
        pickle.dumps([{**predictions[0], 'pred_instances': {}}]): 'no bboxes and no labels and no scores',
        pickle.dumps(predictions)[:40]: 'is not what tools/test.py --out writes',
        b'no pickle': 'UnpicklingError',
        b'cno_such_package\nName\n.': 'ModuleNotFoundError',
    }.items():
        (tmp_path / 'bad.pkl').write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_predictions(tmp_path / 'bad.pkl')
    with pytest.raises(FileNotFoundError, match='there are no predictions at'):
        read_predictions(tmp_path / 'nothing.pkl')


def test_test_set_of_a_config(write_set, tmp_path):
    write_set([(96, 64)])
    dataset = {
        'type': 'CocoDataset',
        'data_root': str(tmp_path),
        'ann_file': 'truth.json',
        'data_prefix': {'img': '.'},
        'metainfo': {'classes': CLASSES, 'palette': PALETTE},
    }
    test_set = read_test_set(Config({'test_dataloader': {'dataset': dataset}}))
    assert test_set.classes == CLASSES
    assert [tuple(colour) for colour in test_set.palette] == PALETTE
    with pytest.raises(InputError, match='has no test_dataloader'):
        read_test_set(Config({'test_dataloader': None}))
    (tmp_path / 'list.json').write_text('[]')
    content = json.loads((tmp_path / 'truth.json').read_text())
    flat = {'id': 1, 'image_id': content['images'][0]['id'], 'category_id': content['categories'][0]['id']}
    flat.update(bbox=[1, 2, 3, 4], area=12, iscrowd=0, segmentation=[1, 2, 30, 2, 30, 30])
    (tmp_path / 'flat.json').write_text(json.dumps({**content, 'annotations': [flat]}))
    for change, message in {
        'no.json': 'no.json',
        'list.json': "list.json is not in COCO's format",
        '1.png': '1.png is not JSON',
        'flat.json': 'segmentation of annotation 1 is .*must be a list of polygons',
    }.items():
        with pytest.raises(InputError, match=message):
            read_test_set(Config({'test_dataloader': {'dataset': {**dataset, 'ann_file': change}}}))
    twice = {'type': 'ConcatDataset', 'datasets': [dataset, dataset]}
    with pytest.raises(InputError, match='is a ConcatDataset: it has no annotation file'):
        read_test_set(Config({'test_dataloader': {'dataset': twice}}))


def test_colours_are_enough():
    assert class_colours(PALETTE, 2) == PALETTE
    assert class_colours(tuple(PALETTE), 2) == tuple(PALETTE)
    for palette in (PALETTE, None, 'random', 'coco', 'voc'):
        colours = class_colours(palette, 90)
        assert len(colours) >= 90
        assert all(len(colour) == 3 for colour in colours)


@pytest.mark.parametrize('size', [(64, 96), (359, 641), (720, 1280), (7, 3000)])
def test_a_painted_frame_keeps_its_size_and_what_is_beside_the_object(size):
    height, width = size
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    assert paint_detections(image, [], CLASSES, PALETTE) is image
    mask = np.zeros(size, bool)
    mask[:, : width // 8] = True
    painted = paint_detections(image, [Drawn(1, (0, 0, width // 8, height), mask, 0.5)], CLASSES, PALETTE)
    assert painted.shape == image.shape
    assert painted.dtype == np.uint8
    # A label may be wider than its object.
    np.testing.assert_array_equal(painted[:, width // 2 + 40 :], image[:, width // 2 + 40 :])
    inside = painted[height // 2 :, 3 : width // 8 - 3].astype(int)
    assert (inside[..., 1] >= image[height // 2 :, 3 : width // 8 - 3, 1]).mean() > 0.9
    assert not (inside == image[height // 2 :, 3 : width // 8 - 3]).all(axis=-1).any()
