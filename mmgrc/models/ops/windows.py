"""Shifted windows of a map by one gather, and one gather back. Plain: pad, roll and partition."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .mode import is_fast

__all__ = ['Windows', 'make_windows']


class Windows(NamedTuple):
    """How a map of tokens is cut into shifted windows."""

    hw_shape: tuple[int, int]
    """Rows and columns of the map."""
    size: int
    """Rows and columns of a window."""
    shift: int
    """By how many rows and columns the padded map is rolled up and left before it is partitioned."""
    order: WindowOrder | None
    """The same as a gather. None: pad, roll and partition."""

    @property
    def counts(self) -> tuple[int, int]:
        """Number of windows from top to bottom and from left to right. The map is padded to whole windows."""
        rows, cols = ((length + self.size - 1) // self.size for length in self.hw_shape)
        return rows, cols

    def partition(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, n, N, D): n windows of N = size² tokens, with zeros for padding."""
        if self.order is not None:
            return self.order.to_windows(tokens).unflatten(1, (-1, self.size * self.size))
        rows, cols = self.counts
        grid = tokens.unflatten(1, self.hw_shape)
        missing = (rows * self.size - self.hw_shape[0], cols * self.size - self.hw_shape[1])
        grid = F.pad(grid, (0, 0, 0, missing[1], 0, missing[0])).roll((-self.shift, -self.shift), (1, 2))
        windows = grid.unflatten(2, (cols, self.size)).unflatten(1, (rows, self.size)).transpose(2, 3)
        return windows.flatten(3, 4).flatten(1, 2)

    def merge(self, windows: Tensor) -> Tensor:
        """(B, n, N, D) -> (B, T, D), the inverse."""
        if self.order is not None:
            return self.order.to_map(windows.flatten(1, 2))
        grid = windows.unflatten(2, (self.size, self.size)).unflatten(1, self.counts).transpose(2, 3)
        grid = grid.flatten(3, 4).flatten(1, 2).roll((self.shift, self.shift), (1, 2))
        return grid[:, : self.hw_shape[0], : self.hw_shape[1]].flatten(1, 2)

    def regions(self, device: torch.device) -> Tensor:
        """The part of the map that each token of a window comes from, (n, N), integers.

        The roll brings tokens from opposite sides of the map into one window. They must not attend to each other.
        """
        bands = []
        for count in self.counts:
            line = torch.arange(count * self.size, device=device)
            bands.append((line >= (count - 1) * self.size).int() + (line >= count * self.size - self.shift).int())
        region = 3 * bands[0][:, None] + bands[1]
        region = region.unflatten(1, (-1, self.size)).unflatten(0, (-1, self.size)).transpose(1, 2)
        return region.flatten(2).flatten(0, 1)


class WindowOrder(NamedTuple):
    """The positions of a map's tokens in its windows."""

    source: Tensor
    """(n N,), the token at each position of the windows. At an empty position, any token."""
    empty: Tensor
    """(n N, 1), bool: the positions outside the map, which get zeros."""
    target: Tensor
    """(T,), the position of each token."""

    def to_windows(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, n N, D)."""
        if torch.is_grad_enabled() and tokens.requires_grad:
            return _Reorder.apply(tokens, self, True)
        return tokens.index_select(1, self.source).masked_fill_(self.empty, 0)

    def to_map(self, windows: Tensor) -> Tensor:
        """(B, n N, D) -> (B, T, D), the inverse."""
        if torch.is_grad_enabled() and windows.requires_grad:
            return _Reorder.apply(windows, self, False)
        return windows.index_select(1, self.target)


class _Reorder(torch.autograd.Function):
    """The two gathers of a :class:`WindowOrder`. Each is the gradient of the other."""

    @staticmethod
    def forward(ctx, tokens: Tensor, order: WindowOrder, windows: bool) -> Tensor:
        ctx.order, ctx.windows = order, windows
        return order.to_windows(tokens) if windows else order.to_map(tokens)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return (ctx.order.to_map(grad) if ctx.windows else ctx.order.to_windows(grad)), None, None


def make_windows(hw_shape: tuple[int, int], size: int, shift: int, device: torch.device) -> Windows:
    """Cut a map into windows of ``size`` rows and columns, after a shift up and left by ``shift``.

    Args:
        hw_shape: Rows and columns of the map.
        size: Rows and columns of a window. The map is padded at the bottom and right to whole windows.
        shift: By how many rows and columns the padded map is rolled before it is partitioned.
        device: The device of the tokens.
    """
    windows = Windows(hw_shape, size, shift, None)
    if not is_fast():
        return windows
    places, sources, inside = [], [], []
    for length, count in zip(hw_shape, windows.counts, strict=True):
        line = torch.arange(count * size, device=device)
        # The source of each position after the roll.
        source = line.roll(-shift)
        sources.append(source.clamp(max=length - 1).unflatten(0, (count, size)))
        inside.append((source < length).unflatten(0, (count, size)))
        places.append(line.roll(shift)[:length])
    # (rows, cols, size, size)
    source = sources[0][:, None, :, None] * hw_shape[1] + sources[1][:, None, :][None]
    empty = ~(inside[0][:, None, :, None] & inside[1][:, None, :][None])
    row, col = places[0][:, None], places[1]
    window = row // size * windows.counts[1] + col // size
    target = (window * size + row % size) * size + col % size
    return windows._replace(order=WindowOrder(source.flatten(), empty.flatten()[:, None], target.flatten()))
