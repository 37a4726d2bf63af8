"""Find the valid part of an image, and resample the grid of its tokens to the grid of a cache."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ['Resampling', 'make_resampling', 'valid_extent']


class Resampling(NamedTuple):
    """Weights that resample a token grid (H, W) to the cache's grid (H_m, W_m), for each image of a batch.

    A cell of the cache is the mean of the tokens that it covers, weighted by the shared area. On a grid of the cache's
    own size this is the identity, bit for bit.
    """

    rows: Tensor
    """(B, H_m, H)"""
    cols: Tensor
    """(B, W_m, W)"""

    def __call__(self, grid: Tensor) -> Tensor:
        """Resample ``grid`` (B, H, W, C) to (B, H_m * W_m, C)."""
        batch, height, width, channels = grid.shape
        rows = self.rows.to(grid.dtype) @ grid.reshape(batch, height, width * channels)
        cells = self.cols.to(grid.dtype)[:, None] @ rows.unflatten(2, (width, channels))
        return cells.flatten(1, 2)


def valid_extent(images: Tensor) -> Tensor:
    """Find how much of each image of a batch is not padding.

    MMDetection pads normalised images with zeros at the bottom and at the right. Trailing rows and columns of zeros are
    therefore taken as padding. An image that has only zeros counts as fully valid.

    Args:
        images: (B, C, H, W).

    Returns:
        (B, 2), the valid rows and columns in pixels, float32.
    """
    filled = (images != 0).any(dim=1)
    extents = []
    for lines in (filled.any(dim=2), filled.any(dim=1)):
        total = lines.shape[1]
        ends = torch.arange(1, total + 1, device=images.device, dtype=torch.float32)
        last = (lines * ends).amax(dim=1)
        extents.append(torch.where(last > 0, last, last.new_full((), total)))
    return torch.stack(extents, dim=1)


def make_resampling(
    extent: Tensor, image_size: tuple[int, int], grid: tuple[int, int], cache_size: tuple[int, int]
) -> Resampling:
    """Compute the weights that resample the valid part of a token grid to the cache's grid.

    Args:
        extent: (B, 2), valid rows and columns of each image, in pixels.
        image_size: Rows and columns of the padded batch, in pixels.
        grid: Rows and columns of its tokens.
        cache_size: Rows and columns of the cache.
    """
    weights = []
    for axis in range(2):
        tokens, cells = grid[axis], cache_size[axis]
        # The valid part in tokens. The multiplication comes first, so that whole numbers stay exact.
        valid = (extent[:, axis] * tokens / image_size[axis])[:, None, None]
        cell = torch.arange(cells, device=extent.device, dtype=extent.dtype)[None, :, None]
        token = torch.arange(tokens, device=extent.device, dtype=extent.dtype)[None, None, :]
        upper = torch.minimum((cell + 1) * valid / cells, token + 1)
        lower = torch.maximum(cell * valid / cells, token)
        weights.append((upper - lower).clamp(min=0) * cells / valid)
    return Resampling(*weights)
