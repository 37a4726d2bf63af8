"""RoIAlign in PyTorch's own operations: the twin of mmcv's compiled op, on any device.

RoIAlign's samples lie on a grid in each region, and bilinear interpolation is a product of its two axes. So a bin is a
weighted sum of cells of the feature map, where a cell's weight is that of its row times that of its column. The forward
pass is one `embedding_bag` (each bin sums cells). The backward pass is another, with the table transposed: each cell
sums bins.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

__all__ = ['Geometry', 'backward', 'forward']

# Regions are taken in groups: 1337 at 7 x 7 bins. Their tables then stay small beside the feature maps of a detector.
_BINS_AT_ONCE = 1 << 16


class Geometry(NamedTuple):
    """What all regions share."""

    bins: tuple[int, int]
    """Rows and columns of the output."""
    scale: float
    """Cells of the feature map per pixel of the image."""
    samples: int
    """Samples along each axis of a bin; 0: as many as the bin has cells, rounded up."""
    aligned: bool
    """Whether a cell's value is that of its middle, half a cell from its corner."""


def _axis_weights(start: Tensor, end: Tensor, bins: int, cells: int, geometry: Geometry) -> Tensor:
    """Weights of the cells of one axis in each bin.

    Args:
        start: Where each region begins, in pixels of the image, shape ``(N,)``.
        end: Where it ends.
        bins: Bins along this axis.
        cells: Cells of the feature map along this axis.
        geometry: What all regions share.

    Returns:
        Weights of shape ``(N, bins, cells)``. Those of a bin add up to 1 where all of its samples are on the map.
    """
    offset = 0.5 if geometry.aligned else 0.0
    start, end = start * geometry.scale - offset, end * geometry.scale - offset
    extent = end - start if geometry.aligned else (end - start).clamp(min=1)
    size = extent / bins
    count = torch.full_like(size, geometry.samples) if geometry.samples > 0 else size.ceil().clamp(min=0)
    most = int(count.max())
    sample = torch.arange(most, device=start.device)
    bin_start = start[:, None] + torch.arange(bins, device=start.device) * size[:, None]
    place = bin_start[:, :, None] + ((sample + 0.5) * size[:, None] / count[:, None])[:, None]
    # As mmcv: a sample further than one cell from the map counts as 0, one nearer as on its border.
    valid = (place >= -1) & (place <= cells) & (sample < count[:, None])[:, None]
    place = torch.where(valid, place, 0).clamp(0, cells - 1)
    low = place.long().clamp(max=max(cells - 2, 0))
    share = (
        torch.stack(((low + 1 - place) * valid, (place - low) * valid), -1) / count.clamp(min=1)[:, None, None, None]
    )
    cell = torch.stack((low, (low + 1).clamp(max=cells - 1)), -1)
    weights = start.new_zeros(len(start), bins, cells)
    return weights.scatter_add_(2, cell.flatten(2), share.flatten(2))


class _Table(NamedTuple):
    """Which cells each bin sums: entries ordered by bin, bins by region, row and column."""

    cell: Tensor
    """The entry's cell in the maps of all images, one after another."""
    weight: Tensor
    first: Tensor
    """The bin's first entry."""

    def transposed(self, cells: int) -> _Table:
        """Which bins each of the cells belongs to."""
        bins = torch.arange(len(self.first), device=self.cell.device)
        lengths = torch.diff(self.first, append=self.first.new_tensor([len(self.cell)]))
        cell, order = self.cell.sort()
        first = torch.searchsorted(cell, torch.arange(cells, device=cell.device))
        return _Table(bins.repeat_interleave(lengths)[order], self.weight[order], first)

    def sums(self, values: Tensor) -> Tensor:
        """Weighted sums of rows of ``values``."""
        if not len(self.cell):
            return values.new_zeros(len(self.first), values.shape[1])
        return embedding_bag(self.cell, values, self.first, mode='sum', per_sample_weights=self.weight)


def _table(rois: Tensor, height: int, width: int, geometry: Geometry) -> _Table:
    shape = (len(rois), *geometry.bins)
    rows = _axis_weights(rois[:, 2], rois[:, 4], geometry.bins[0], height, geometry)
    columns = _axis_weights(rois[:, 1], rois[:, 3], geometry.bins[1], width, geometry)
    roi, bin_row, row = rows.nonzero(as_tuple=True)
    row_weight, row_cell = rows[roi, bin_row, row], (rois[roi, 0].long() * height + row) * width
    roi, bin_column, column_cell = columns.nonzero(as_tuple=True)
    column_weight = columns[roi, bin_column, column_cell]
    n_rows, n_columns = (rows != 0).sum(2), (columns != 0).sum(2)
    first_row = n_rows.flatten().cumsum(0).view_as(n_rows) - n_rows
    first_column = n_columns.flatten().cumsum(0).view_as(n_columns) - n_columns

    # The entries of a bin are each of its rows with each of its columns.
    entries = (n_rows[:, :, None] * n_columns[:, None, :]).flatten()
    first = entries.cumsum(0) - entries
    of_bin = torch.arange(len(first), device=rois.device).repeat_interleave(entries)
    place = torch.arange(len(of_bin), device=rois.device) - first[of_bin]
    across = n_columns[:, None, :].expand(shape).flatten()[of_bin]
    down = place // across
    i = first_row[:, :, None].expand(shape).flatten()[of_bin] + down
    j = first_column[:, None, :].expand(shape).flatten()[of_bin] + place - down * across
    return _Table(row_cell[i] + column_cell[j], row_weight[i] * column_weight[j], first)


def _groups(rois: Tensor, geometry: Geometry) -> Iterator[tuple[slice, Tensor]]:
    step = max(1, _BINS_AT_ONCE // (geometry.bins[0] * geometry.bins[1]))
    for start in range(0, len(rois), step):
        yield slice(start, start + step), rois[start : start + step]


def forward(features: Tensor, rois: Tensor, output: Tensor, geometry: Geometry) -> None:
    """Average the features in each bin of each region.

    Args:
        features: Feature maps, float32 or float64, shape ``(B, C, H, W)``.
        rois: For each of N regions the image and the corners ``(x1, y1, x2, y2)`` in pixels of it, shape ``(N, 5)``.
        output: Where the averages are written, shape ``(N, C, rows, columns)``.
        geometry: What all regions share.
    """
    images, channels, height, width = features.shape
    cells = features.new_empty(images, height * width, channels)
    # PyTorch copies one transposed matrix in blocks: much faster than a permutation of all images.
    for rows, image in zip(cells, features.flatten(2), strict=True):
        rows.copy_(image.t())
    for part, some in _groups(rois, geometry):
        sums = _table(some, height, width, geometry).sums(cells.flatten(0, 1))
        output[part] = sums.view(-1, *geometry.bins, channels).permute(0, 3, 1, 2)


def backward(grad_output: Tensor, rois: Tensor, grad_features: Tensor, geometry: Geometry) -> None:
    """Write the gradient of :func:`forward`.

    Args:
        grad_output: Gradients of the averages, float32 or float64, shape ``(N, C, rows, columns)``.
        rois: As in :func:`forward`.
        grad_features: Where the gradients of the feature maps are written, zeros of shape ``(B, C, H, W)``.
        geometry: What all regions share.
    """
    images, channels, height, width = grad_features.shape
    cells = None
    for part, some in _groups(rois, geometry):
        bins = grad_output[part].permute(0, 2, 3, 1).reshape(-1, channels)
        sums = _table(some, height, width, geometry).transposed(images * height * width).sums(bins)
        cells = sums if cells is None else cells.add_(sums)
    if cells is not None:
        for image, rows in zip(grad_features.view(images, channels, -1), cells.view(images, -1, channels), strict=True):
            image.copy_(rows.t())
