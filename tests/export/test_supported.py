"""What cannot be exported is named, with what can."""

import pytest

from mmgrc.export import check_supported
from mmgrc.runs.config import build_model, load_config
from mmgrc.runs.error import InputError
from tests.conftest import REPOSITORY

MASK, RETINA = 'shapes/mask_rcnn_grc_pvt.py', 'shapes/retinanet_grc_swin.py'


def build(name, options=None):
    return build_model(load_config(str(REPOSITORY / 'configs' / name), options))


@pytest.mark.parametrize(
    'path', [MASK, RETINA, 'mask_rcnn_grc_swin.py', 'retinanet_grc_pvt.py', 'baselines/retinanet_pvtv2_b0.py']
)
def test_configs_that_are_supported(path):
    check_supported(build(path))


@pytest.mark.parametrize(
    ('path', 'options', 'message'),
    [
        ('more/dino_grc_swin.py', {}, 'model is a DINO, .* supports RetinaNet, FasterRCNN, MaskRCNN. .* MMDeploy'),
        ('more/cascade_mask_rcnn_grc_swin.py', {}, 'model is a CascadeRCNN'),
        (
            MASK,
            {'model.roi_head.mask_head.type': 'CoarseMaskHead'},
            'model.roi_head.mask_head is a CoarseMaskHead, .* supports FCNMaskHead',
        ),
        (MASK, {'model.roi_head.bbox_roi_extractor.roi_layer.pool_mode': 'max'}, "pool_mode='max': .* 'avg'"),
        (MASK, {'model.test_cfg.rcnn.nms.type': 'soft_nms'}, r"test_cfg\.rcnn\.nms=.*soft_nms.*supports type='nms'"),
        (MASK, {'model.test_cfg.rpn.nms_pre': -1}, r'test_cfg\.rpn\.nms_pre=-1: .* positive number'),
        (MASK, {'model.test_cfg.rcnn.max_per_img': -1}, r'test_cfg\.rcnn\.max_per_img=-1'),
        (RETINA, {'model.test_cfg.score_thr': 5}, r'model\.test_cfg\.score_thr=5: .* from 0 to 1'),
        (RETINA, {'model.data_preprocessor.pad_size_divisor': 1}, 'pad_size_divisor=1: .* multiples of 32'),
        (RETINA, {'model.bbox_head.anchor_generator.type': 'LegacyAnchorGenerator'}, 'prior_generator is a Legacy'),
    ],
)
def test_what_is_not_supported_is_named(path, options, message):
    with pytest.raises(InputError, match=message):
        check_supported(build(path, options))


def test_losses_with_scores_of_their_own():
    loss = {'_delete_': True, 'type': 'SeesawLoss', 'num_classes': 3}
    with pytest.raises(InputError, match='loss_cls is a SeesawLoss'):
        check_supported(build(MASK, {'model.roi_head.bbox_head.loss_cls': loss}))
