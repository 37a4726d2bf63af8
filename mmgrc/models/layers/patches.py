"""Patch embedding and merging without a transposed map. Each layer adopts the submodules of its stock layer."""

from __future__ import annotations

import torch.nn.functional as F
from mmdet.models import layers
from torch import Tensor, nn

from ..ops import is_fast
from ..ops.convolution import convolve_patches, cut_patches, reorder_patch_weight, tiles
from ..ops.linear import computes_as_stock, linear

__all__ = ['PatchEmbed', 'PatchMerging']


class PatchEmbed(nn.Module):
    """Patch embedding of images, or of the map of the previous stage.

    Args:
        stock: The layer of MMDetection whose submodules are adopted.
    """

    def __init__(self, stock: layers.PatchEmbed) -> None:
        super().__init__()
        self.adap_padding = stock.adap_padding
        self.projection = stock.projection
        self.norm = stock.norm

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embed (B, C, H, W) as tokens (B, T, D). Return the tokens and their rows and columns."""
        if self.adap_padding is not None:
            images = self.adap_padding(images)
        tokens, hw_shape = convolve_patches(images, self.projection)
        return (tokens if self.norm is None else self.norm(tokens)), hw_shape


class PatchMerging(nn.Module):
    """Swin's patch merging. MMDetection computes it from an unfolded, transposed map.

    Args:
        stock: The layer of MMDetection whose submodules are adopted.
    """

    def __init__(self, stock: layers.PatchMerging) -> None:
        super().__init__()
        self.adap_padding = stock.adap_padding
        self.sampler = stock.sampler
        self.norm = stock.norm
        self.reduction = stock.reduction

    @staticmethod
    def fits(stock: layers.PatchMerging) -> bool:
        """Whether the layer pads to whole patches that do not overlap, and has Swin's norm or no norm."""
        padded = stock.adap_padding is not None
        return padded and tiles(stock.sampler) and isinstance(stock.norm, nn.LayerNorm | None)

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """Merge each patch of tokens into one.

        Args:
            x: (B, T, D).
            hw_shape: Rows and columns of the tokens. The grid is padded with zeros to whole patches.

        Returns:
            (B, T', D'), and their rows and columns.
        """
        grid, dims = self.adap_padding(x.unflatten(1, hw_shape).permute(0, 3, 1, 2)), x.shape[2]
        stock = all(computes_as_stock(layer) for layer in (self.norm, self.reduction) if layer is not None)
        if not (is_fast() and stock):
            rows, cols = (size // step for size, step in zip(grid.shape[2:], self.sampler.stride, strict=True))
            patches = self.sampler(grid).transpose(1, 2)
            return self.reduction(patches if self.norm is None else self.norm(patches)), (rows, cols)
        patches, hw_shape = cut_patches(grid, self.sampler.kernel_size)
        if self.norm is not None:
            weight, bias = (reorder_patch_weight(part, dims) for part in (self.norm.weight, self.norm.bias))
            patches = F.layer_norm(patches, self.norm.normalized_shape, weight, bias, self.norm.eps)
        return linear(patches, reorder_patch_weight(self.reduction.weight, dims), self.reduction.bias), hw_shape
