"""The evaluation of the configs, against pycocotools itself and against the COCO API's own example results."""

import json
import os
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.registry import METRICS
from mmengine.config import Config
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmgrc.datasets import CLASSES
from mmgrc.evaluation import coco_metric
from tests.conftest import REPOSITORY

# From the COCO API's repository: 100 images of val2014, its example results for them, and what they give. They are in
# the folder that COCOEVAL_REFERENCE names, else among the data of this clone or of a folder beside it.
REFERENCE = os.environ.get('COCOEVAL_REFERENCE') or next(REPOSITORY.parent.glob('*/data/cocoeval_reference'), None)


# Each test of numbers runs with both.
LIBRARIES = [
    'pycocotools',
    pytest.param(
        'hotcoco',
        marks=pytest.mark.skipif(find_spec('hotcoco') is None, reason='hotcoco is not installed (make env)'),
    ),
]


def evaluate(ann_file, results, classes, metric, library, monkeypatch):
    """The 12 scores of a COCO results list, from the config's evaluator, before rounding."""
    stats = []
    summarize = COCOeval.summarize

    def record(evaluation):
        summarize(evaluation)
        assert (type(evaluation).__name__ == 'FastCOCOeval') == (library == 'hotcoco')
        stats.append(evaluation.stats)

    monkeypatch.setattr(COCOeval, 'summarize', record)
    config = Config.fromfile(REPOSITORY / 'configs' / 'mask_rcnn_grc_pvt.py').val_evaluator
    options = {'ann_file': str(ann_file), 'metric': metric, 'proposal_nums': (1, 10, 100), 'library': library}
    evaluator = METRICS.build({**config, **options})
    evaluator.dataset_meta = {'classes': classes}
    truth = COCO(ann_file)
    labels = {category: label for label, category in enumerate(truth.getCatIds(catNms=list(classes)))}
    by_image = defaultdict(list)
    for result in results:
        by_image[result['image_id']].append(result)
    for image in truth.loadImgs(truth.getImgIds()):
        found = by_image[image['id']]
        boxes = [r['bbox'] if 'bbox' in r else coco_mask.toBbox(r['segmentation']) for r in found]
        boxes = torch.tensor(np.array(boxes, float).reshape(-1, 4))
        boxes[:, 2:] += boxes[:, :2]
        instances = {
            'bboxes': boxes,
            'scores': torch.tensor([r['score'] for r in found], dtype=torch.float64),
            'labels': torch.tensor([labels[r['category_id']] for r in found], dtype=torch.long),
        }
        if metric == 'segm':
            instances['masks'] = [{**r['segmentation'], 'counts': r['segmentation']['counts'].encode()} for r in found]
        sample = {'img_id': image['id'], 'ori_shape': (image['height'], image['width']), 'pred_instances': instances}
        evaluator.process({}, [sample])
    rounded = evaluator.evaluate(len(truth.getImgIds()))
    assert rounded[f'coco/{metric}_mAP'] == round(stats[0][0], 3)
    return stats[0]


@pytest.mark.skipif(not REFERENCE, reason='the example results of the COCO API are not here (COCOEVAL_REFERENCE)')
@pytest.mark.parametrize('library', LIBRARIES)
@pytest.mark.parametrize('metric', ['bbox', 'segm'])
def test_golden_numbers_of_the_coco_api(metric, library, monkeypatch):
    folder = Path(REFERENCE)
    results = json.loads((folder / f'instances_val2014_fake{metric}100_results.json').read_text())
    golden = json.loads((folder / 'golden_val2014_100.json').read_text())['stats'][metric]
    classes = CocoDataset.METAINFO['classes']
    found = evaluate(folder / 'instances_val2014_100.json', results, classes, metric, library, monkeypatch)
    np.testing.assert_allclose(found, golden, rtol=0, atol=1e-6)


@pytest.mark.parametrize('library', LIBRARIES)
@pytest.mark.parametrize('metric', ['bbox', 'segm'])
def test_equals_pycocotools_on_moved_shapes(metric, library, shapes, monkeypatch, tmp_path):
    ann_file = shapes / 'annotations' / 'instances_train.json'
    truth = COCO(ann_file)
    rng = np.random.default_rng(0)
    results = []
    for annotation in truth.loadAnns(truth.getAnnIds()):
        if rng.random() < 0.1:
            continue
        shift = rng.integers(-4, 5, 2)
        result = {
            'image_id': annotation['image_id'],
            'category_id': annotation['category_id'] if rng.random() < 0.9 else int(rng.integers(1, 4)),
            'score': float(rng.random()),
        }
        if metric == 'segm':
            mask = np.roll(truth.annToMask(annotation), shift, axis=(0, 1))
            encoded = coco_mask.encode(np.asfortranarray(mask))
            result['segmentation'] = {'size': encoded['size'], 'counts': encoded['counts'].decode()}
        else:
            x, y, w, h = annotation['bbox']
            result['bbox'] = [x + float(shift[0]), y + float(shift[1]), w, h]
        results.append(result)
    (tmp_path / 'results.json').write_text(json.dumps(results))
    reference = COCOeval(truth, truth.loadRes(str(tmp_path / 'results.json')), metric)
    reference.evaluate()
    reference.accumulate()
    reference.summarize()
    assert 0.05 < reference.stats[0] < 0.95
    found = evaluate(ann_file, results, CLASSES, metric, library, monkeypatch)
    np.testing.assert_allclose(found, reference.stats, rtol=0, atol=1e-9)


def small_set(shapes):
    """A metric's options and one detection on each image of the validation set."""
    ann_file = shapes / 'annotations' / 'instances_val.json'
    samples = []
    for image in COCO(ann_file).imgs.values():
        instances = {
            'bboxes': torch.tensor([[10.0, 10.0, 40.0, 40.0]]),
            'scores': torch.tensor([0.5]),
            'labels': torch.tensor([image['id'] % 3]),
        }
        samples.append({'img_id': image['id'], 'ori_shape': (64, 96), 'pred_instances': instances})
    return {'type': 'FastCocoMetric', 'ann_file': str(ann_file), 'classwise': True, 'iou_thrs': IOUS}, samples


IOUS = np.linspace(0.05, 0.5, 10)


def run(options, samples):
    metric = METRICS.build(options)
    metric.dataset_meta = {'classes': CLASSES}
    metric.process({}, samples)
    return metric.evaluate(len(samples))


@pytest.mark.parametrize('library', LIBRARIES)
def test_all_metrics_are_those_of_mmdetection(library, shapes, tmp_path):
    """With AP of each class, and recall of proposals. NaN (a class without objects) is equal to itself."""
    options, samples = small_set(shapes)
    # MMDetection's fast recall needs equal numbers of objects with this NumPy.
    content = json.loads(Path(options['ann_file']).read_text())
    content['annotations'] = list({a['image_id']: a for a in content['annotations']}.values())
    options['ann_file'] = str(tmp_path / 'one_each.json')
    Path(options['ann_file']).write_text(json.dumps(content))
    options['metric'] = ['bbox', 'proposal', 'proposal_fast']
    stock = run({**options, 'type': 'CocoMetric'}, samples)
    assert stock['coco/bbox_mAP'] > 0
    assert {'coco/circle_precision', 'coco/AR@100', 'coco/AR_s@1000'} <= stock.keys()
    np.testing.assert_equal(run({**options, 'library': library}, samples), stock)


@pytest.mark.parametrize('library', LIBRARIES)
def test_ap_of_each_class_has_its_name(library, shapes, tmp_path):
    """With categories that are not in the order of their ids, which is that of pycocotools' results."""
    options, samples = small_set(shapes)
    content = json.loads(Path(options['ann_file']).read_text())
    content['categories'] = content['categories'][::-1]
    options['ann_file'] = str(tmp_path / 'reversed.json')
    Path(options['ann_file']).write_text(json.dumps(content))
    truth = COCO(options['ann_file'])
    # Labels are numbered in the order of the file. Only the objects of one class are found.
    (wanted,) = truth.getCatIds(catNms=['circle'])
    label = truth.getCatIds().index(wanted)
    for sample in samples:
        boxes = [a['bbox'] for a in truth.loadAnns(truth.getAnnIds(sample['img_id'], wanted))]
        boxes = torch.tensor(np.array(boxes, np.float32).reshape(-1, 4))
        boxes[:, 2:] += boxes[:, :2]
        sample['pred_instances'] = {
            'bboxes': boxes,
            'scores': torch.ones(len(boxes)),
            'labels': torch.full((len(boxes),), label),
        }
    metric = METRICS.build({**options, 'library': library})
    metric.dataset_meta = {'classes': CLASSES}
    # The second validation of a training, too.
    for _ in range(2):
        metric.process({}, samples)
        found = metric.evaluate(len(samples))
        assert [found[f'coco/{name}_precision'] for name in CLASSES] == [name == 'circle' for name in CLASSES]


def test_the_log_says_who_evaluates(shapes, said, monkeypatch):
    options, samples = small_set(shapes)
    run({**options, 'library': 'pycocotools'}, samples)
    assert 'COCO: pycocotools evaluates' in said
    said.clear()
    monkeypatch.setattr(coco_metric, 'find_spec', lambda name: None)
    run(options, samples)
    assert 'COCO: pycocotools evaluates (faster with hotcoco: pip install hotcoco)' in said


@pytest.mark.skipif(find_spec('hotcoco') is None, reason='hotcoco is not installed (make env)')
def test_hotcoco_is_chosen_where_it_is_installed(shapes, said, monkeypatch):
    import hotcoco

    options, samples = small_set(shapes)
    run(options, samples)
    assert f'COCO: hotcoco {hotcoco.__version__} evaluates' in said
    # pycocotools in several processes is used if asked for.
    said.clear()
    run({**options, 'use_mp_eval': True}, samples)
    assert 'COCO: pycocotools evaluates' in said
    with pytest.raises(ValueError, match=r"library='hotcoco' with use_mp_eval=True.*leave one of them out"):
        METRICS.build({**options, 'library': 'hotcoco', 'use_mp_eval': True})


def test_library_that_is_not_there(monkeypatch):
    with pytest.raises(ValueError, match=r"library='fast': give one of 'auto', 'hotcoco', 'pycocotools'"):
        METRICS.build({'type': 'FastCocoMetric', 'library': 'fast'})
    monkeypatch.setattr(coco_metric, 'find_spec', lambda name: None)
    words = "library='hotcoco', but hotcoco is not installed. Type: pip install hotcoco"
    with pytest.raises(ImportError, match=words):
        METRICS.build({'type': 'FastCocoMetric', 'library': 'hotcoco'})
