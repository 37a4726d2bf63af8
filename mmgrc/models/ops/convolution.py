"""Convolutions of tokens on their grid. Plain: ``nn.Conv2d`` on the tokens as a map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .linear import computes_as_stock, linear
from .mode import has_onednn, is_fast

__all__ = ['convolve_patches', 'convolve_tokens', 'cut_patches', 'reorder_patch_weight', 'tiles']


def convolve_tokens(x: Tensor, hw_shape: tuple[int, int], conv: nn.Conv2d) -> Tensor:
    """Convolve tokens on their grid, whose size does not change.

    With two channels in a group, oneDNN's kernel for groups takes up to ten times as long as its kernel for depthwise
    convolutions. Each channel is therefore convolved once for itself and once for the other channel of its pair. The
    latter results are swapped.

    Args:
        x: (B, T, D).
        hw_shape: Rows H and columns W of the tokens, T = H W.
        conv: The layer, of D to D channels.

    Returns:
        (B, T, D).
    """
    channels = conv.out_channels
    # (B, T, D) as an NHWC map.
    grid = x.unflatten(1, hw_shape).permute(0, 3, 1, 2)
    # oneDNN's kernel is for float32 and bfloat16, under autocast too.
    pairs = channels == 2 * conv.groups and has_onednn(x, torch.float32, torch.bfloat16)
    if not pairs or not computes_as_stock(conv):
        return conv(grid).permute(0, 2, 3, 1).flatten(1, 2)
    # (D / 2, out, in, 3, 3)
    weight = conv.weight.unflatten(0, (-1, 2))
    own = torch.stack([weight[:, 0, 0], weight[:, 1, 1]], dim=1).flatten(0, 1)[:, None]
    other = torch.stack([weight[:, 1, 0], weight[:, 0, 1]], dim=1).flatten(0, 1)[:, None]
    out, crossed = (
        F.conv2d(grid, weight, bias, padding=conv.padding, groups=channels).permute(0, 2, 3, 1)
        for weight, bias in ((own, conv.bias), (other, None))
    )
    first, second = crossed.unflatten(3, (-1, 2)).unbind(4)
    return (out + torch.stack([second, first], dim=4).flatten(3)).flatten(1, 2)


def convolve_patches(grid: Tensor, conv: nn.Module) -> tuple[Tensor, tuple[int, int]]:
    """Convolve a map to tokens.

    If the stride equals the kernel size, this is a linear layer of patches. On the CPU its backward pass takes half the
    time of the convolution's. A map smaller than the kernel is padded with zeros at the bottom and right.

    Args:
        grid: (B, C, H, W).
        conv: The layer, of C to D channels.

    Returns:
        (B, T, D), and the rows and columns of the tokens.
    """
    missing = [
        max(kernel - 2 * padding - size, 0)
        for kernel, padding, size in zip(conv.kernel_size, conv.padding, grid.shape[2:], strict=True)
    ]
    if any(missing):
        grid = F.pad(grid, (0, missing[1], 0, missing[0]))
    is_linear = isinstance(conv, nn.Conv2d) and conv.groups == 1 and tiles(conv)
    if not (is_fast() and is_linear and computes_as_stock(conv)):
        out = conv(grid)
        return out.flatten(2).transpose(1, 2), tuple(out.shape[2:])
    patches, hw_shape = cut_patches(grid, (conv.kernel_size[0], conv.kernel_size[1]))
    return linear(patches, reorder_patch_weight(conv.weight.flatten(1), grid.shape[1]), conv.bias), hw_shape


def tiles(layer: nn.Conv2d | nn.Unfold) -> bool:
    """Whether the layer's patches tile the map: no gaps, no padding, no overlap."""
    return layer.kernel_size == layer.stride and layer.dilation == (1, 1) and layer.padding == (0, 0)


def cut_patches(grid: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """Cut (B, D, H, W) into T patches (B, T, rows cols D), dropping a remainder; return their rows and columns, too."""
    rows, cols = (length // part for length, part in zip(grid.shape[2:], size, strict=True))
    grid = grid.permute(0, 2, 3, 1)[:, : rows * size[0], : cols * size[1]]
    patches = grid.unflatten(2, (cols, size[1])).unflatten(1, (rows, size[0])).transpose(2, 3)
    return patches.flatten(3).flatten(1, 2), (rows, cols)


def reorder_patch_weight(weight: Tensor, dims: int) -> Tensor:
    """Reorder the last axis from PyTorch's order (``dims`` channels, then positions) to that of a patch."""
    return weight.unflatten(-1, (dims, -1)).transpose(-1, -2).flatten(-2)
