"""NMS and RoIAlign as operators that `torch.export` keeps whole, and their forms in ONNX.

PyTorch computes them with mmcv's functions. In ONNX they become ``NonMaxSuppression`` and ``RoiAlign`` of the standard.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from mmcv.ops import nms as mmcv_nms
from mmcv.ops import roi_align as mmcv_roi_align
from torch import Tensor

__all__ = ['ABSENT', 'nms', 'onnx_translations', 'roi_align']

ABSENT = -1.0
"""The score of a box that is not there. It fills up the boxes of an image to a fixed number."""


@torch.library.custom_op('mmgrc::nms', mutates_args=())
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, max_kept: int) -> Tensor:
    """Keep the best box of each image, drop those that overlap it by more than the threshold, and repeat.

    Args:
        boxes: Corners (x1, y1, x2, y2), shape ``(B, K, 4)``.
        scores: Scores ``(B, K)``. Boxes with a negative score are absent.
        iou_threshold: The largest IoU of two boxes that are both kept.
        max_kept: The largest number of boxes that are kept in an image.

    Returns:
        Whether each box is kept, bool, ``(B, K)``.
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for image in range(len(boxes)):
        (present,) = (scores[image] >= 0).nonzero(as_tuple=True)
        if len(present):
            best = mmcv_nms(boxes[image, present], scores[image, present], iou_threshold)[1]
            kept[image, present[best[:max_kept]]] = True
    return kept


@nms.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, max_kept: int) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


@torch.library.custom_op('mmgrc::roi_align', mutates_args=())
def roi_align(
    features: Tensor, rois: Tensor, height: int, width: int, scale: float, samples: int, aligned: bool
) -> Tensor:
    """Average the features in each bin of each region.

    Args:
        features: Feature maps ``(B, C, H, W)``.
        rois: The index of the image and the corners (x1, y1, x2, y2) in its pixels, for N regions, ``(N, 5)``.
        height: Rows of bins.
        width: Columns of bins.
        scale: Cells of the feature map per pixel of the image.
        samples: Samples along each axis of a bin. 0 takes as many as the bin has cells, rounded up.
        aligned: Whether the value of a cell belongs to its centre, half a cell from its corner.

    Returns:
        The averages ``(N, C, height, width)``.
    """
    return mmcv_roi_align(features, rois, (height, width), scale, samples, 'avg', aligned)


@roi_align.register_fake
def _(features: Tensor, rois: Tensor, height: int, width: int, scale: float, samples: int, aligned: bool) -> Tensor:
    return features.new_empty(rois.shape[0], features.shape[1], height, width)


def onnx_translations() -> dict[Callable, Callable]:
    """The operators in ONNX, for ``torch.onnx.export(..., custom_translation_table=...)``. They need onnxscript."""
    from onnxscript import opset18 as op

    def onnx_nms(boxes, scores, iou_threshold: float, max_kept: int):
        # Rows of the image, the class (there is one) and the box.
        selected = op.NonMaxSuppression(
            boxes,
            op.Unsqueeze(scores, op.Constant(value_ints=[1])),
            op.Constant(value_ints=[max_kept]),
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[ABSENT / 2]),
        )
        at = op.Gather(selected, op.Constant(value_ints=[0, 2]), axis=1)
        ones = op.Expand(op.Constant(value_int=1), op.Shape(at, start=0, end=1))
        nothing = op.Expand(op.Constant(value_int=0), op.Shape(scores))
        return op.Cast(op.ScatterND(nothing, at, ones), to=9)

    def onnx_roi_align(features, rois, height: int, width: int, scale: float, samples: int, aligned: bool):
        return op.RoiAlign(
            features,
            op.Gather(rois, op.Constant(value_ints=[1, 2, 3, 4]), axis=1),
            op.Cast(op.Gather(rois, op.Constant(value_int=0), axis=1), to=7),
            coordinate_transformation_mode='half_pixel' if aligned else 'output_half_pixel',
            mode='avg',
            output_height=height,
            output_width=width,
            sampling_ratio=samples,
            spatial_scale=scale,
        )

    return {torch.ops.mmgrc.nms.default: onnx_nms, torch.ops.mmgrc.roi_align.default: onnx_roi_align}
