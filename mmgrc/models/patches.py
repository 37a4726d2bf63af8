"""Layers that see patches which do not overlap, of pixels or tokens, as linear layers: no map is transposed."""

from __future__ import annotations

import torch.nn.functional as F
from mmdet.models import layers
from torch import Tensor, nn

from .linear import linear

__all__ = ['PatchEmbed', 'PatchMerging', 'convolve_patches']


def convolve_patches(grid: Tensor, conv: nn.Module) -> tuple[Tensor, tuple[int, int]]:
    """Convolve a map to tokens.

    Where the stride is the kernel this is a linear layer of patches. On the CPU its backward pass takes half the time
    of the convolution's. A map into which the kernel does not fit once is padded with zeros at the bottom and right.

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
    if not (isinstance(conv, nn.Conv2d) and conv.groups == 1 and _tiles(conv)):
        out = conv(grid)
        return out.flatten(2).transpose(1, 2), tuple(out.shape[2:])
    patches, hw_shape = _cut(grid, conv.kernel_size)
    return linear(patches, _reorder(conv.weight.flatten(1), grid.shape[1]), conv.bias), hw_shape


class PatchEmbed(nn.Module):
    """Patch embedding of images, or of the map of the stage before.

    Args:
        stock: The layer of MMDetection whose submodules are adopted.
    """

    def __init__(self, stock: layers.PatchEmbed) -> None:
        super().__init__()
        self.adap_padding = stock.adap_padding
        self.projection = stock.projection
        self.norm = stock.norm

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embed (B, C, H, W) as tokens (B, T, D); returns their rows and columns, too."""
        if self.adap_padding is not None:
            images = self.adap_padding(images)
        tokens, hw_shape = convolve_patches(images, self.projection)
        return (tokens if self.norm is None else self.norm(tokens)), hw_shape


class PatchMerging(nn.Module):
    """Swin's patch merging, which MMDetection makes of an unfolded, transposed map.

    Args:
        stock: The layer of MMDetection whose submodules are adopted.
    """

    def __init__(self, stock: layers.PatchMerging) -> None:
        super().__init__()
        self.adap_padding = stock.adap_padding
        self.norm = stock.norm
        self.reduction = stock.reduction
        self.patch_size = stock.sampler.kernel_size

    @staticmethod
    def fits(stock: layers.PatchMerging) -> bool:
        """Whether the layer pads to whole patches that do not overlap, and its norm is Swin's or none."""
        padded = stock.adap_padding is not None
        return padded and _tiles(stock.sampler) and isinstance(stock.norm, nn.LayerNorm | None)

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """Merge each patch of tokens into one.

        Args:
            x: (B, T, D).
            hw_shape: Rows and columns of the tokens; padded with zeros to whole patches.

        Returns:
            (B, T', D'), and their rows and columns.
        """
        dims = x.shape[2]
        patches, hw_shape = _cut(self.adap_padding(x.unflatten(1, hw_shape).permute(0, 3, 1, 2)), self.patch_size)
        if self.norm is not None:
            weight, bias = _reorder(self.norm.weight, dims), _reorder(self.norm.bias, dims)
            patches = F.layer_norm(patches, self.norm.normalized_shape, weight, bias, self.norm.eps)
        return linear(patches, _reorder(self.reduction.weight, dims), self.reduction.bias), hw_shape


def _tiles(layer: nn.Conv2d | nn.Unfold) -> bool:
    """Whether the layer's patches stand side by side, with nothing between, around or in common."""
    return layer.kernel_size == layer.stride and layer.dilation == (1, 1) and layer.padding == (0, 0)


def _cut(grid: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """Cut (B, D, H, W) into T patches, (B, T, rows cols D), and their rows and columns; a rest is left out."""
    rows, cols = (length // part for length, part in zip(grid.shape[2:], size, strict=True))
    grid = grid.permute(0, 2, 3, 1)[:, : rows * size[0], : cols * size[1]]
    patches = grid.unflatten(2, (cols, size[1])).unflatten(1, (rows, size[0])).transpose(2, 3)
    return patches.flatten(3).flatten(1, 2), (rows, cols)


def _reorder(weight: Tensor, dims: int) -> Tensor:
    """Bring the last axis from PyTorch's order, the places of each of ``dims`` channels, to that of a patch."""
    return weight.unflatten(-1, (dims, -1)).transpose(-1, -2).flatten(-2)
