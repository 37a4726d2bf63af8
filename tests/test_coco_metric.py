"""The evaluation of the configs, against pycocotools itself and against the COCO API's own example results."""

import json
import os
from collections import defaultdict
from pathlib import Path

import mmdet.evaluation.metrics.coco_metric as coco_metric
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
from tests.conftest import REPOSITORY

# From the COCO API's repository: 100 images of val2014, its example results for them, and what they give. They are in
# the folder that COCOEVAL_REFERENCE names, else among the data of this clone or of a folder beside it.
REFERENCE = os.environ.get('COCOEVAL_REFERENCE') or next(REPOSITORY.parent.glob('*/data/cocoeval_reference'), None)


def evaluate(ann_file, results, classes, metric, monkeypatch):
    """The 12 scores of a COCO results list, from the config's evaluator, before rounding."""
    stats = []

    class Recorder(coco_metric.COCOeval):
        def summarize(self):
            super().summarize()
            stats.append(self.stats)

    monkeypatch.setattr(coco_metric, 'COCOeval', Recorder)
    config = Config.fromfile(REPOSITORY / 'configs' / 'mask_rcnn_grc_pvt.py').val_evaluator
    evaluator = METRICS.build({**config, 'ann_file': str(ann_file), 'metric': metric, 'proposal_nums': (1, 10, 100)})
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
@pytest.mark.parametrize('metric', ['bbox', 'segm'])
def test_golden_numbers_of_the_coco_api(metric, monkeypatch):
    folder = Path(REFERENCE)
    results = json.loads((folder / f'instances_val2014_fake{metric}100_results.json').read_text())
    golden = json.loads((folder / 'golden_val2014_100.json').read_text())['stats'][metric]
    classes = CocoDataset.METAINFO['classes']
    found = evaluate(folder / 'instances_val2014_100.json', results, classes, metric, monkeypatch)
    np.testing.assert_allclose(found, golden, rtol=0, atol=1e-6)


@pytest.mark.parametrize('metric', ['bbox', 'segm'])
def test_equals_pycocotools_on_moved_shapes(metric, shapes, monkeypatch, tmp_path):
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
    found = evaluate(ann_file, results, CLASSES, metric, monkeypatch)
    np.testing.assert_allclose(found, reference.stats, rtol=0, atol=1e-6)
