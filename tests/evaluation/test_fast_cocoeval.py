"""hotcoco's precision and recall against pycocotools', also where the two libraries differ."""

import contextlib
import copy
import io
import multiprocessing
import re

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmgrc.evaluation.fast_cocoeval import FastCOCOeval

pytest.importorskip('hotcoco', reason='hotcoco is not installed (make env)')

HEIGHT, WIDTH = 120, 160


def make_set(seed=0, images=30, classes=6):
    """Ground truth with crowds, images without objects and categories out of order; detections with equal scores."""
    rng = np.random.default_rng(seed)
    categories = [{'id': int(i), 'name': f'c{i}'} for i in rng.permutation(np.arange(1, 3 * classes, 3))]
    truth = {'images': [], 'annotations': [], 'categories': categories}
    found = []
    for image_id in (7 * rng.permutation(np.arange(1, images + 1))).tolist():
        truth['images'].append({'id': image_id, 'width': WIDTH, 'height': HEIGHT, 'file_name': f'{image_id}.png'})
        for _ in range(rng.integers(0, 7)):
            size = np.exp(rng.uniform(np.log(4), np.log(110), 2))
            box = [*(rng.uniform(0, 1, 2) * ([WIDTH, HEIGHT] - size)).tolist(), *size.tolist()]
            category = categories[rng.integers(classes)]['id']
            crowd = int(rng.random() < 0.1)
            annotation = {'image_id': image_id, 'category_id': category, 'bbox': box, 'iscrowd': crowd}
            annotation.update(id=len(truth['annotations']) + 1, area=box[2] * box[3] * 0.8)
            annotation['segmentation'] = encode(box) if crowd else [corners(box)]
            truth['annotations'].append(annotation)
            for _ in range(rng.integers(0, 4)):
                moved = (np.array(box) + rng.normal(0, 0.1, 4) * [*size, *size]).clip(0.5).tolist()
                label = category if rng.random() < 0.8 else categories[rng.integers(classes)]['id']
                result = {'image_id': image_id, 'category_id': label, 'score': round(float(rng.random()), 1)}
                found.append({**result, 'bbox': moved, 'segmentation': encode(moved)})
    return truth, found


def corners(box):
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def encode(box):
    (run_lengths,) = coco_mask.frPyObjects([corners(box)], HEIGHT, WIDTH)
    return {'size': run_lengths['size'], 'counts': run_lengths['counts'].decode()}


def evaluate(kind_of_evaluation, truth, found, kind, **params):
    """Evaluate copies, as MMDetection does, with its parameters unless others are given."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        left_out = 'bbox' if kind == 'segm' else 'segmentation'
        results = [{key: r[key] for key in r if key != left_out} for r in copy.deepcopy(found)]
        evaluation = kind_of_evaluation(coco, coco.loadRes(results), kind)
        params = {'maxDets': [100, 300, 1000], 'catIds': coco.getCatIds(), 'imgIds': coco.getImgIds(), **params}
        for name, value in params.items():
            setattr(evaluation.params, name, value)
        printed.truncate(0)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation, printed.getvalue().split('Average', 1)[1]


def assert_equal(truth, found, kind, **params):
    """Return whether hotcoco computed it."""
    fast, fast_table = evaluate(FastCOCOeval, truth, found, kind, **params)
    reference, table = evaluate(COCOeval, truth, found, kind, **params)
    np.testing.assert_allclose(fast.stats, reference.stats, rtol=0, atol=1e-9)
    for name in ('precision', 'recall', 'scores'):
        np.testing.assert_allclose(fast.eval[name], reference.eval[name], rtol=0, atol=1e-9)
    assert list(fast.eval['counts']) == list(reference.eval['counts'])
    assert fast_table == table
    return fast._fast is not None


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
@pytest.mark.parametrize('seed', range(4))
def test_equals_pycocotools(seed, kind):
    truth, found = make_set(seed)
    assert 0.05 < evaluate(COCOeval, truth, found, kind)[0].stats[0] < 0.95
    assert assert_equal(truth, found, kind)


PARAMS = {
    'the COCO API': {'maxDets': [1, 10, 100]},
    'out of order': {'maxDets': [300, 1, 100]},
    'without 100': {'maxDets': [1, 2, 3]},
    'proposals': {'useCats': 0},
    'thresholds': {'iouThrs': np.array([0.3, 0.5, 0.75])},
    'some classes': {'catIds': [13, 4, 1]},
    'some images': {'imgIds': [21, 7, 14, 14]},
    'areas': {'areaRng': [[0, 1e10], [0, 100], [100, 2000], [2000, 1e10]]},
}


@pytest.mark.parametrize('params', PARAMS.values(), ids=PARAMS)
def test_parameters(params):
    truth, found = make_set()
    assert assert_equal(truth, found, 'bbox', **params)


def change(part, index=0, **values):
    def apply(truth, found):
        (found if part == 'found' else truth[part])[index].update(values)

    return apply


def without(part, *keys):
    def apply(truth, found):
        for key in keys:
            truth[part][0].pop(key)

    return apply


def drop_objects(truth, found):
    truth['annotations'].clear()


def name_images(truth, found):
    for one in (*truth['images'], *truth['annotations'], *found):
        key = 'image_id' if 'image_id' in one else 'id'
        one[key] = f'image {one[key]:03}'


REGULAR = {
    'no objects': drop_objects,
    'no sizes': without('images', 'width', 'height'),
    'an object in an image that the file lacks': change('annotations', image_id=1),
    'a bare polygon': change('annotations', segmentation=[]),
    'ignored': change('annotations', ignore=1),
    'a crowd with a polygon': change('annotations', iscrowd=1),
    'class that the file lacks': change('found', category_id=2),
    'empty box': change('found', bbox=[1.0, 1.0, 0.0, 0.0]),
    'box below 0': change('found', bbox=[-9.0, -9.0, 4.0, 4.0]),
    'score below 0': change('found', score=-1.0),
}


@pytest.mark.parametrize('edit', REGULAR.values(), ids=REGULAR)
def test_unusual_data(edit):
    truth, found = make_set()
    edit(truth, found)
    assert assert_equal(truth, found, 'bbox')


DIFFERING = {
    'names as ids': (name_images, r"ids of images are not all whole numbers from 0 up \('image"),
    'the id 0': (change('annotations', id=0), r'ids of annotations are not all whole numbers from 1 up \(0\)'),
    'ids twice': (change('annotations', id=2), 'ids of annotations are not distinct'),
    'no score': (change('found', score=float('nan')), r'a detection in image \d+ has a box, an area or a score that'),
    'no box': (change('found', bbox=[float('nan')] * 4), r'a detection in image \d+ has a box, an area or a score'),
    'a crowd in words': (
        change('annotations', iscrowd='0'),
        'annotation 1 has no area, or an iscrowd that is not 0 or 1',
    ),
    'endless object': (change('annotations', area=float('inf')), 'annotation 1 has a box, an area or a score that'),
}


@pytest.mark.parametrize(('edit', 'words'), DIFFERING.values(), ids=DIFFERING)
def test_where_the_libraries_differ_pycocotools_evaluates(edit, words, said):
    truth, found = make_set()
    edit(truth, found)
    assert not assert_equal(truth, found, 'bbox')
    assert len(said) == 1
    assert said[0].startswith('COCO: pycocotools evaluates instead of hotcoco, since ')
    assert re.search(words, said[0])


@pytest.mark.parametrize(
    ('edit', 'kind', 'error'),
    [
        (without('annotations', 'iscrowd'), 'bbox', KeyError),
        (without('annotations', 'area'), 'bbox', KeyError),
        (change('annotations', segmentation=[]), 'segm', IndexError),
        (change('annotations', segmentation=[[1, 2]]), 'segm', Exception),
    ],
)
def test_the_errors_are_those_of_pycocotools(edit, kind, error):
    """Otherwise a file would pass here that fails where hotcoco is not installed."""
    truth, found = make_set()
    edit(truth, found)
    for kind_of_evaluation in (COCOeval, FastCOCOeval):
        with pytest.raises(error):
            evaluate(kind_of_evaluation, truth, found, kind)


def test_masks_without_boxes():
    truth, found = make_set()
    without('annotations', 'bbox')(truth, found)
    assert assert_equal(truth, found, 'segm')


def test_truth_that_pycocotools_evaluated_before():
    """It replaces polygons with run lengths in bytes."""
    truth, found = make_set()
    coco, results = (evaluate(COCOeval, truth, found, 'segm')[0].__dict__[name] for name in ('cocoGt', 'cocoDt'))
    assert isinstance(coco.dataset['annotations'][0]['segmentation']['counts'], bytes)
    fast = FastCOCOeval(coco, results, 'segm')
    reference = COCOeval(coco, results, 'segm')
    for evaluation in (fast, reference):
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
    assert fast._fast is not None
    np.testing.assert_allclose(fast.stats, reference.stats, rtol=0, atol=1e-9)


def test_other_parameters_at_the_end():
    fast, _ = evaluate(FastCOCOeval, *make_set(), 'bbox')
    with pytest.raises(ValueError, match='set the parameters before evaluate'):
        fast.accumulate(fast.params)


def test_a_fork_does_not_wait_for_threads_that_it_lacks(said):
    """hotcoco's threads are not copied into a forked process, such as a worker of a user's own pool."""
    truth, found = make_set()
    expected, _ = evaluate(FastCOCOeval, truth, found, 'bbox')
    context = multiprocessing.get_context('fork')
    receiver, sender = context.Pipe(duplex=False)

    def child():
        evaluation, _ = evaluate(FastCOCOeval, truth, found, 'bbox')
        sender.send((evaluation.stats, said))

    process = context.Process(target=child)
    process.start()
    assert receiver.poll(30), 'it does not end'
    stats, messages = receiver.recv()
    process.join(10)
    np.testing.assert_allclose(stats, expected.stats, rtol=0, atol=1e-9)
    assert 'pycocotools evaluates instead of hotcoco, since this process is a fork' in messages[-1]
    # Here it goes on.
    assert_equal(truth, found, 'bbox')
