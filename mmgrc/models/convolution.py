"""Grouped convolutions of tokens on the fastest kernel that PyTorch has for them on the CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .linear import is_eager_float32

__all__ = ['convolve_tokens']


def convolve_tokens(x: Tensor, hw_shape: tuple[int, int], conv: nn.Conv2d) -> Tensor:
    """Convolve tokens on their grid, which keeps its size.

    With two channels in a group, oneDNN's kernel for groups takes up to ten times as long as its kernel for depthwise
    convolutions. So a channel is convolved for itself and for the other one of its pair, and the latter are swapped.

    Args:
        x: (B, T, D).
        hw_shape: Rows H and columns W of the tokens, T = H W.
        conv: The layer, of D to D channels.

    Returns:
        (B, T, D).
    """
    channels = conv.out_channels
    # (B, T, D) seen as an NHWC map.
    grid = x.unflatten(1, hw_shape).permute(0, 3, 1, 2)
    if channels != 2 * conv.groups or not is_eager_float32(x):
        out = F.conv2d(grid, conv.weight, conv.bias, padding=conv.padding, groups=conv.groups)
        return out.permute(0, 2, 3, 1).flatten(1, 2)
    # (D / 2, out, in, 3, 3)
    pairs = conv.weight.unflatten(0, (-1, 2))
    own = torch.stack([pairs[:, 0, 0], pairs[:, 1, 1]], dim=1).flatten(0, 1)[:, None]
    other = torch.stack([pairs[:, 1, 0], pairs[:, 0, 1]], dim=1).flatten(0, 1)[:, None]
    out, crossed = (
        F.conv2d(grid, weight, bias, padding=conv.padding, groups=channels).permute(0, 2, 3, 1)
        for weight, bias in ((own, conv.bias), (other, None))
    )
    first, second = crossed.unflatten(3, (-1, 2)).unbind(4)
    return (out + torch.stack([second, first], dim=4).flatten(3)).flatten(1, 2)
