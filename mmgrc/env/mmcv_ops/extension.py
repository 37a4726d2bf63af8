"""Replacement of the compiled module ``mmcv._ext``: functions with the same names and arguments.

The arguments are those of mmcv, even if an op here does not use them. Results are written to the tensors that mmcv
passes in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..versions import compile_mmcv_command
from . import nms as _nms
from . import roi_align as _roi_align

# Modules of mmcv.ops whose ops are all here, for axis-aligned boxes.
PROVIDED = ('focal_loss', 'info', 'multi_scale_deform_attn', 'nms', 'roi_align')


class MissingOpError(NotImplementedError):
    """An op of mmcv that is not compiled, and that mmgrc does not provide, since no recipe uses it."""

    def __init__(self, op: str):
        super().__init__(
            f"mmcv's op {op} is not available: mmgrc provides only the ops that its recipes use. The others need "
            f'compiled mmcv. Type: make env-full (in your own environment: {compile_mmcv_command()})'
        )


@functools.cache
def torchvision_works() -> bool:
    """Return whether torchvision is installed and its kernels work with the installed torch."""
    try:
        import torchvision  # noqa: F401

        return torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5).tolist() == [0]
    except Exception:
        # With another torch than it was built for, it fails in several ways, at its import or here.
        return False


def use_torchvision(device: torch.device) -> bool:
    """Return whether to use torchvision's kernels: only on a GPU.

    On a CPU its RoIAlign takes 2 to 4 times as long as ours.
    """
    return device.type == 'cuda' and torchvision_works()


def get_compiler_version() -> str:
    return 'none: the ops come from mmgrc.env.mmcv_ops'


def get_compiling_cuda_version() -> str:
    return 'not available'


def _with_last_pixel(boxes: Tensor, offset: int) -> Tensor:
    """Convert boxes whose last corner is their last pixel (``offset`` 1) to boxes whose last corner is their edge."""
    return boxes.float() + boxes.new_tensor([0, 0, offset, offset], dtype=torch.float32)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    boxes = _with_last_pixel(boxes, offset)
    if use_torchvision(boxes.device):
        # mmcv compares in single precision.
        return torch.ops.torchvision.nms(boxes, scores.float(), float(np.float32(iou_threshold)))
    return _nms.nms(boxes, scores, iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    corners = _with_last_pixel(boxes, offset)
    indices, lowered = _nms.softnms(corners, scores, iou_threshold, sigma, min_score, method)
    dets[: len(indices)] = torch.cat((boxes[indices], lowered[:, None]), 1)
    return indices


def _single(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    if pool_mode != 1:
        raise MissingOpError("roi_align with pool_mode='max'")
    # Half precision would shift the samples.
    input, rois = _single(input), _single(rois)
    if use_torchvision(input.device):
        size = (aligned_height, aligned_width)
        output.copy_(torch.ops.torchvision.roi_align(input, rois, spatial_scale, *size, sampling_ratio, aligned))
    else:
        geometry = _roi_align.Geometry((aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned)
        _roi_align.forward(input, rois, output, geometry)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    grad_output, rois = _single(grad_output), _single(rois)
    if use_torchvision(grad_output.device):
        size = (aligned_height, aligned_width, *grad_input.shape)
        backward = torch.ops.torchvision._roi_align_backward
        grad_input.copy_(backward(grad_output, rois, spatial_scale, *size, sampling_ratio, aligned))
    else:
        geometry = _roi_align.Geometry((aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned)
        _roi_align.backward(grad_output, rois, grad_input, geometry)


def _focal_loss(input: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

    if weight.numel():
        raise MissingOpError('sigmoid_focal_loss with weights of the classes')
    # A target past the last class is background.
    classes = input.shape[1]
    labels = one_hot(target, classes + 1)[:, :classes]
    return py_sigmoid_focal_loss(input, labels, gamma=gamma, alpha=alpha, reduction='none')


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    output.copy_(_focal_loss(input, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    grads = _gradients(lambda x: _focal_loss(x, target, weight, gamma, alpha), [input], torch.ones_like(input))
    grad_input.copy_(grads[0])


def ms_deform_attn_forward(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor, im2col_step: int
) -> Tensor:
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)


def ms_deform_attn_backward(
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    locations: Tensor,
    weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_locations: Tensor,
    grad_weights: Tensor,
    im2col_step: int,
) -> None:
    grads = _gradients(
        lambda v, at, w: ms_deform_attn_forward(v, shapes, starts, at, w, im2col_step),
        [value, locations, weights],
        grad_output,
    )
    for target, grad in zip((grad_value, grad_locations, grad_weights), grads, strict=True):
        target.copy_(grad)


def _gradients(function: Callable[..., Tensor], inputs: list[Tensor], grad_output: Tensor) -> tuple[Tensor, ...]:
    """Recompute a function and return its gradients, since mmcv saves only the inputs."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    with torch.enable_grad():
        return torch.autograd.grad(function(*inputs), inputs, grad_output)


def __getattr__(name: str) -> Callable[..., NoReturn]:
    """Stand in for any other op: mmcv looks up all ops at its import, but calls only a few."""
    if name.startswith('_'):
        raise AttributeError(name)

    def missing(*args: object, **kwargs: object) -> NoReturn:
        raise MissingOpError(name)

    return missing
