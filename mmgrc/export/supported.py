"""Check that each part of a detector computes what the export writes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

from mmcv.ops import RoIAlign
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.dense_heads import RetinaHead, RPNHead
from mmdet.models.detectors import FasterRCNN, MaskRCNN, RetinaNet
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import ConvFCBBoxHead, Shared2FCBBoxHead, Shared4Conv1FCBBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from mmengine.config import ConfigDict
from torch import nn

from mmgrc.runs.error import InputError

__all__ = ['STRIDE', 'check_supported']

STRIDE = 32
"""Padded images are multiples of it in size, so that the maps of each stage fit exactly."""

# A subclass may compute something else, so the types must be exactly these. Not every detector has every part.
_PARTS = {
    'data_preprocessor': [DetDataPreprocessor],
    'bbox_head': [RetinaHead],
    'bbox_head.prior_generator': [AnchorGenerator],
    'bbox_head.bbox_coder': [DeltaXYWHBBoxCoder],
    'rpn_head': [RPNHead],
    'rpn_head.prior_generator': [AnchorGenerator],
    'rpn_head.bbox_coder': [DeltaXYWHBBoxCoder],
    'roi_head': [StandardRoIHead],
    'roi_head.shared_head': [],
    'roi_head.bbox_roi_extractor': [SingleRoIExtractor],
    'roi_head.bbox_roi_extractor.roi_layers.0': [RoIAlign],
    'roi_head.bbox_head': [ConvFCBBoxHead, Shared2FCBBoxHead, Shared4Conv1FCBBoxHead],
    'roi_head.bbox_head.bbox_coder': [DeltaXYWHBBoxCoder],
    'roi_head.mask_roi_extractor': [SingleRoIExtractor],
    'roi_head.mask_roi_extractor.roi_layers.0': [RoIAlign],
    'roi_head.mask_head': [FCNMaskHead],
}
_NMS_OPTIONS = {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}


def check_supported(model: nn.Module) -> None:
    """Check that a detector can be exported.

    Args:
        model: The detector, built from its config.

    Raises:
        InputError: The detector, a part of it or an option of its ``test_cfg`` is not supported.
    """
    _check_type('model', model, [RetinaNet, FasterRCNN, MaskRCNN])
    for path, types in _PARTS.items():
        part = _find(model, path)
        if part is not None:
            _check_type(f'model.{path}', part, types)
        if isinstance(part, RoIAlign) and part.pool_mode != 'avg':
            raise InputError(f"model.{path}.pool_mode={part.pool_mode!r}: the export supports 'avg'")
        if getattr(getattr(part, 'loss_cls', None), 'custom_cls_channels', False):
            raise InputError(
                f'model.{path}.loss_cls is a {type(part.loss_cls).__name__}, which computes scores in its own way: the '
                'export supports losses with plain sigmoid or softmax'
            )
    divisor = model.data_preprocessor.pad_size_divisor
    if divisor % STRIDE:
        raise InputError(
            f'model.data_preprocessor.pad_size_divisor={divisor}: the export supports multiples of {STRIDE}. Set it to '
            f'{STRIDE}'
        )
    for name, test_cfg, needed in _test_cfgs(model):
        _check_test_cfg(name, test_cfg, needed)


def _find(model: nn.Module, path: str) -> object:
    """The part at a dotted path, or None."""
    return reduce(lambda part, name: getattr(part, name, None), path.split('.'), model)


def _check_type(name: str, part: object, types: list[type]) -> None:
    if type(part) not in types:
        allowed = ', '.join(kind.__name__ for kind in types) or 'detectors without it'
        raise InputError(
            f'{name} is a {type(part).__name__}, which cannot be exported. The export supports {allowed}. For other '
            'detectors see MMDeploy'
        )


def _test_cfgs(model: nn.Module) -> Iterator[tuple[str, ConfigDict, tuple[str, ...]]]:
    """Each part of the ``test_cfg``, with its name and the numbers that it must have."""
    if isinstance(model, RetinaNet):
        yield 'model.test_cfg', model.bbox_head.test_cfg, ('nms_pre', 'max_per_img', 'score_thr')
    else:
        yield 'model.test_cfg.rpn', model.rpn_head.test_cfg, ('nms_pre', 'max_per_img')
        yield 'model.test_cfg.rcnn', model.roi_head.test_cfg, ('max_per_img', 'score_thr')


def _check_test_cfg(name: str, test_cfg: ConfigDict, needed: tuple[str, ...]) -> None:
    for key in needed:
        value = test_cfg.get(key)
        if key == 'score_thr':
            good, allowed = isinstance(value, int | float) and 0 <= value <= 1, 'a score from 0 to 1'
        else:
            good, allowed = isinstance(value, int) and value > 0, 'a positive number, which fixes sizes in the graph'
        if not good:
            raise InputError(f'{name}.{key}={value!r}: the export needs {allowed}')
    nms = test_cfg.get('nms')
    if not nms or nms.get('type') != 'nms' or 'iou_threshold' not in nms or not set(nms) <= _NMS_OPTIONS:
        raise InputError(
            f"{name}.nms={nms and dict(nms)}: the export supports type='nms' with iou_threshold and, if wanted, "
            'class_agnostic'
        )
