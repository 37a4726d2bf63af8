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
    plain = isinstance(conv, nn.Conv2d) and conv.groups == 1 and conv.dilation == (1, 1) and conv.padding == (0, 0)
    if not plain or conv.kernel_size != conv.stride:
        out = conv(grid)
        return out.flatten(2).transpose(1, 2), tuple(out.shape[2:])
    patches = _cut(grid.permute(0, 2, 3, 1), conv.kernel_size)
    # (D, C, rows, cols) -> (D, rows cols C)
    tokens = linear(patches.flatten(1, 2), conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)
    return tokens, tuple(patches.shape[1:3])


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
        self.norm = stock.norm
        self.reduction = stock.reduction
        self.patch_size = stock.sampler.kernel_size

    @staticmethod
    def fits(stock: layers.PatchMerging) -> bool:
        """Whether the layer's patches do not overlap, and its norm is Swin's or none."""
        sampler = stock.sampler
        tiles = sampler.kernel_size == sampler.stride and sampler.dilation == (1, 1) and sampler.padding == (0, 0)
        return tiles and isinstance(stock.norm, nn.LayerNorm | None)

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """Merge each patch of tokens into one.

        Args:
            x: (B, T, D).
            hw_shape: Rows and columns of the tokens; padded with zeros at the bottom and right to whole patches.

        Returns:
            (B, T', D'), and their rows and columns.
        """
        grid = x.unflatten(1, hw_shape)
        missing = [-length % size for length, size in zip(hw_shape, self.patch_size, strict=True)]
        if any(missing):
            grid = F.pad(grid, (0, 0, 0, missing[1], 0, missing[0]))
        patches = _cut(grid, self.patch_size)
        tokens = patches.flatten(1, 2)
        if self.norm is not None:
            weight, bias = (self._reorder(part, x.shape[2]) for part in (self.norm.weight, self.norm.bias))
            tokens = F.layer_norm(tokens, self.norm.normalized_shape, weight, bias, self.norm.eps)
        tokens = linear(tokens, self._reorder(self.reduction.weight, x.shape[2]), self.reduction.bias)
        return tokens, tuple(patches.shape[1:3])

    @staticmethod
    def _reorder(weight: Tensor, dims: int) -> Tensor:
        """Bring the last axis from MMDetection's order, the places of a channel side by side, to that of a patch."""
        return weight.unflatten(-1, (dims, -1)).transpose(-1, -2).flatten(-2)


def _cut(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut (B, H, W, D) into patches (B, H', W', rows cols D); what does not fill one is left out."""
    rows, cols = (length // part for length, part in zip(grid.shape[1:3], size, strict=True))
    grid = grid[:, : rows * size[0], : cols * size[1]]
    return grid.unflatten(2, (cols, size[1])).unflatten(1, (rows, size[0])).transpose(2, 3).flatten(3)
