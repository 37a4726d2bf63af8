"""RoIAlign without compiled ops, on any device, equivalent to mmcv's.

The samples of RoIAlign lie on a grid in each region, and bilinear interpolation is separable. So a bin is a weighted
sum of cells of the feature map. The weight of a cell is the weight of its row times the weight of its column. The
forward pass is one `embedding_bag`, in which each bin sums cells. The backward pass is another one with the transposed
table, in which each cell sums bins.

The tables are small, but they take many steps to build. NumPy and SciPy build them on one core. PyTorch's threads would
wait for each other at every step, and wait long if other processes use the cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csc_matrix, csr_matrix
from torch import Tensor
from torch.nn.functional import embedding_bag

__all__ = ['Geometry', 'backward', 'forward']

# Regions are processed in groups, of 1337 at 7 x 7 bins. So their tables are small compared to the feature maps of a
# detector.
_BINS_AT_ONCE = 1 << 16


class Geometry(NamedTuple):
    """What all regions share."""

    bins: tuple[int, int]
    """Rows and columns of the output."""
    scale: float
    """Cells of the feature map per pixel of the image."""
    samples: int
    """Samples along each axis of a bin. 0 takes as many as the bin has cells, rounded up."""
    aligned: bool
    """Whether the value of a cell belongs to its centre, half a cell from its corner."""


@np.errstate(invalid='ignore', divide='ignore')
def _axis_weights(start: np.ndarray, end: np.ndarray, bins: int, cells: int, geometry: Geometry) -> csr_matrix:
    """Compute the weights of the cells of one axis in each bin.

    Args:
        start: Start of each region, in pixels of the image, shape ``(N,)``.
        end: End of each region.
        bins: Bins along this axis.
        cells: Cells of the feature map along this axis.
        geometry: What all regions share.

    Returns:
        A row for each bin of each region, shape ``(N * bins, cells)``. The row sums to 1 if all samples of its bin are
        on the map.
    """
    offset = 0.5 if geometry.aligned else 0.0
    start, end = start * geometry.scale - offset, end * geometry.scale - offset
    extent = end - start if geometry.aligned else np.maximum(end - start, 1)
    size = extent / bins
    # A region that is not finite has no samples on the map. Its result is zero.
    dense = np.nan_to_num(np.ceil(size), posinf=0).clip(0)
    count = np.full_like(size, geometry.samples) if geometry.samples > 0 else dense
    sample = np.arange(count.max(initial=0), dtype=start.dtype)
    bin_start = start[:, None] + np.arange(bins, dtype=start.dtype) * size[:, None]
    place = bin_start[:, :, None] + ((sample + 0.5) * size[:, None] / count[:, None])[:, None]
    # As in mmcv, a sample more than one cell outside the map is 0. A closer one takes the value at the border.
    roi, row, number = ((place >= -1) & (place <= cells) & (sample < count[:, None])[:, None]).nonzero()
    place = place[roi, row, number].clip(0, cells - 1)
    high = place - np.floor(place)
    low = place.astype(np.int32)
    weight = np.concatenate((1 - high, high)) / np.tile(count[roi], 2)
    place = (np.tile(roi * bins + row, 2), np.concatenate((low, np.minimum(low + 1, cells - 1))))
    # Samples of a bin in the same cell are summed.
    weights = csr_matrix((weight, place), shape=(len(start) * bins, cells))
    weights.eliminate_zeros()
    return weights


def _table(rois: np.ndarray, height: int, width: int, images: int, geometry: Geometry) -> csr_matrix:
    """Compute the weights of the cells in each bin.

    Returns:
        A row for each bin of each region. The columns are the cells of all images, one image after another.
    """
    rows = _axis_weights(rois[:, 2], rois[:, 4], geometry.bins[0], height, geometry)
    columns = _axis_weights(rois[:, 1], rois[:, 3], geometry.bins[1], width, geometry)
    # The entries of a bin combine each of its rows with each of its columns.
    shape = (len(rois), geometry.bins[0], geometry.bins[1])
    first_row, n_rows, first_column, n_columns = (
        np.broadcast_to(values.reshape(len(rois), *axes), shape).ravel()
        for weights, axes in ((rows, (-1, 1)), (columns, (1, -1)))
        for values in (weights.indptr[:-1], np.diff(weights.indptr))
    )
    first = np.concatenate(([0], np.cumsum(n_rows * n_columns)))
    of_bin = np.repeat(np.arange(len(n_rows)), np.diff(first))
    down, across = np.divmod(np.arange(first[-1]) - first[of_bin], n_columns[of_bin])
    row, column = first_row[of_bin] + down, first_column[of_bin] + across
    image = rois[of_bin // (geometry.bins[0] * geometry.bins[1]), 0].astype(np.int64)
    cell = (image * height + rows.indices[row]) * width + columns.indices[column]
    weight = rows.data[row] * columns.data[column]
    return csr_matrix((weight, cell, first), shape=(len(n_rows), images * height * width))


def _sums(table: csr_matrix | csc_matrix, values: Tensor) -> Tensor:
    """Sum the rows of ``values``, weighted by each row of the table, or by each column of a ``csc_matrix``."""
    if not table.nnz:
        return values.new_zeros(len(table.indptr) - 1, values.shape[1])
    rows, first, weights = (
        torch.from_numpy(array).to(values.device) for array in (table.indices, table.indptr[:-1], table.data)
    )
    return embedding_bag(rows, values, first, mode='sum', per_sample_weights=weights)


def _groups(rois: Tensor, geometry: Geometry) -> Iterator[tuple[slice, np.ndarray]]:
    rois = rois.cpu().numpy()
    step = max(1, _BINS_AT_ONCE // (geometry.bins[0] * geometry.bins[1]))
    for start in range(0, len(rois), step):
        yield slice(start, start + step), rois[start : start + step]


def forward(features: Tensor, rois: Tensor, output: Tensor, geometry: Geometry) -> None:
    """Average the features in each bin of each region.

    Args:
        features: Feature maps, float32 or float64, shape ``(B, C, H, W)``.
        rois: The index of the image and the corners ``(x1, y1, x2, y2)`` in its pixels, for N regions, shape
            ``(N, 5)``.
        output: Tensor to which the averages are written, shape ``(N, C, rows, columns)``.
        geometry: What all regions share.
    """
    images, channels, height, width = features.shape
    cells = features.new_empty(images, height * width, channels)
    # PyTorch copies one transposed matrix in blocks, which is much faster than permuting all images at once.
    for rows, image in zip(cells, features.flatten(2), strict=True):
        rows.copy_(image.t())
    for part, some in _groups(rois, geometry):
        sums = _sums(_table(some, height, width, images, geometry), cells.flatten(0, 1))
        output[part] = sums.view(-1, *geometry.bins, channels).permute(0, 3, 1, 2)


def backward(grad_output: Tensor, rois: Tensor, grad_features: Tensor, geometry: Geometry) -> None:
    """Write the gradient of :func:`forward`.

    Args:
        grad_output: Gradients of the averages, float32 or float64, shape ``(N, C, rows, columns)``.
        rois: As in :func:`forward`.
        grad_features: Zeros of shape ``(B, C, H, W)``, to which the gradients of the feature maps are written.
        geometry: What all regions share.
    """
    images, channels, height, width = grad_features.shape
    cells = None
    for part, some in _groups(rois, geometry):
        bins = grad_output[part].permute(0, 2, 3, 1).reshape(-1, channels)
        sums = _sums(_table(some, height, width, images, geometry).tocsc(), bins)
        cells = sums if cells is None else cells.add_(sums)
    if cells is not None:
        for image, rows in zip(grad_features.view(images, channels, -1), cells.view(images, -1, channels), strict=True):
            image.copy_(rows.t())
