"""The form of the detectors that is exported finds what MMDetection's `predict` finds."""

import numpy as np
import pytest
import torch

from mmgrc.export.detectors import make_exportable
from tests.helpers.detectors import FASTER_RCNN, assert_same_detections, build_detector, predict, random_image

IMAGES = [random_image(96, 128), random_image(70, 150, 1)]


@torch.no_grad()
def detect(model, images, sizes):
    exportable = make_exportable(model)
    outs = exportable(torch.from_numpy(images), torch.from_numpy(sizes))
    return {name: out.numpy() for name, out in zip(exportable.outputs, outs, strict=True)}


@pytest.mark.parametrize(
    ('config', 'options'),
    [
        ('shapes/mask_rcnn_grc_pvt.py', {}),
        ('shapes/mask_rcnn_grc_pvt.py', {'model.roi_head.bbox_head.reg_class_agnostic': False}),
        ('shapes/mask_rcnn_grc_pvt.py', {'model.roi_head.mask_head.class_agnostic': True}),
        ('shapes/mask_rcnn_grc_pvt.py', {'model.rpn_head.loss_cls.use_sigmoid': False}),
        ('shapes/mask_rcnn_grc_pvt.py', {'model.test_cfg.rcnn.nms.class_agnostic': True}),
        ('shapes/mask_rcnn_grc_pvt.py', {'model.test_cfg.rpn.min_bbox_size': 20}),
        ('shapes/mask_rcnn_grc_pvt.py', {'model.rpn_head.bbox_coder.clip_border': False}),
        ('shapes/mask_rcnn_grc_pvt.py', FASTER_RCNN),
        ('shapes/retinanet_grc_swin.py', {}),
        ('shapes/retinanet_grc_swin.py', {'model.data_preprocessor.bgr_to_rgb': False, 'model.test_cfg.nms_pre': 7}),
        ('shapes/retinanet_grc_swin.py', {'model.data_preprocessor.pad_value': 1}),
    ],
    ids=lambda value: value if isinstance(value, str) else '-'.join(value).replace('model.', ''),
)
def test_finds_what_mmdetection_finds(config, options):
    model = build_detector(config, options)
    expected, images, sizes = predict(model, IMAGES)
    assert all(len(instances) > 5 for instances, _ in expected)
    assert_same_detections(detect(model, images, sizes), expected)


@pytest.mark.parametrize(
    ('config', 'test_cfg'),
    [('shapes/mask_rcnn_grc_pvt.py', 'model.test_cfg.rcnn'), ('shapes/retinanet_grc_swin.py', 'model.test_cfg')],
)
def test_nothing_is_found(config, test_cfg):
    model = build_detector(config, {f'{test_cfg}.score_thr': 1.0})
    expected, images, sizes = predict(model, IMAGES)
    found = detect(model, images, sizes)
    assert all(len(instances) == 0 for instances, _ in expected)
    assert found['boxes'].shape == (0, 4)
    assert found.get('masks', np.empty((0, 28, 28))).shape == (0, 28, 28)


def test_no_proposals():
    model = build_detector('shapes/mask_rcnn_grc_pvt.py', {'model.test_cfg.rpn.min_bbox_size': 10_000})
    _, images, sizes = predict(model, IMAGES)
    assert detect(model, images, sizes)['boxes'].shape == (0, 4)
