"""The stock attention and feed-forward layers of PVT and Swin on fused kernels, under their stock keys.

Each class adopts the submodules of a stock MMDetection layer, so that construction, initialisation and state-dict keys
stay MMDetection's, and only the computation is ours.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmdet.models.backbones import pvt, swin
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from .grc import GRC, Resampling
from .linear import linear

__all__ = [
    'FFN',
    'MixFFN',
    'ShiftWindowMSA',
    'SpatialReductionAttention',
    'WindowOrder',
    'make_window_order',
    'pad_to_kernel',
]


def pad_to_kernel(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Pad a map (B, C, H, W) with zeros at the bottom and right until ``conv`` fits into it once.

    Larger maps, where stock layers run, are returned as they are.
    """
    missing = [
        max(kernel - 2 * padding - size, 0)
        for kernel, padding, size in zip(conv.kernel_size, conv.padding, x.shape[2:], strict=True)
    ]
    return F.pad(x, (0, missing[1], 0, missing[0])) if any(missing) else x


class SpatialReductionAttention(nn.Module):
    """PVT's attention without attention maps in memory, with a GRC branch where one is given.

    Args:
        stock: The layer of MMDetection whose submodules are adopted.
        grc: The memory of this layer. None: the stock computation.
    """

    def __init__(self, stock: pvt.SpatialReductionAttention, grc: GRC | None = None) -> None:
        super().__init__()
        self.attn = stock.attn
        self.proj_drop = stock.proj_drop
        self.dropout_layer = stock.dropout_layer
        self.sr_ratio = stock.sr_ratio
        if self.sr_ratio > 1:
            self.sr = stock.sr
            self.norm = stock.norm
        self.grc = grc

    def forward(
        self,
        x: Tensor,
        hw_shape: tuple[int, int],
        identity: Tensor,
        cache: Tensor | None = None,
        resampling: Resampling | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend the tokens, and the memory where there is one.

        Args:
            x: (B, T, D), normed tokens.
            hw_shape: Rows and columns of the tokens.
            identity: (B, T, D), what the result is added to.
            cache: (1, T_m, D_m), see :meth:`GRC.forward`.
            resampling: See :meth:`GRC.forward`.

        Returns:
            (B, T, D), and the cache that this step proposes, if any.
        """
        out, proposal = self.proj_drop(self._attend(x, hw_shape)), None
        if self.grc is not None:
            out, proposal = self.grc(x, out, hw_shape, cache, resampling)
        # In place, as below: a fresh map costs more than the sum.
        return self.dropout_layer(out).add_(identity), proposal

    def _attend(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        attn = self.attn
        weight, bias, dims = attn.in_proj_weight, attn.in_proj_bias, attn.embed_dim
        if self.sr_ratio > 1:
            grid = x.unflatten(1, hw_shape).permute(0, 3, 1, 2)
            reduced = self.norm(self.sr(pad_to_kernel(grid, self.sr)).flatten(2).transpose(1, 2))
            query = linear(x, weight[:dims], None if bias is None else bias[:dims])
            key, value = linear(reduced, weight[dims:], None if bias is None else bias[dims:]).chunk(2, dim=2)
        else:
            query, key, value = linear(x, weight, bias).chunk(3, dim=2)
        # (B, T, D) -> (B, heads, T, D / heads)
        query, key, value = (t.unflatten(2, (attn.num_heads, -1)).transpose(1, 2) for t in (query, key, value))
        out = F.scaled_dot_product_attention(query, key, value, dropout_p=attn.dropout if self.training else 0.0)
        return attn.out_proj(out.transpose(1, 2).flatten(2))


class MixFFN(nn.Module):
    """PVT's feed-forward layer with its 1x1 convolutions as linear layers: tokens need no transposition.

    Args:
        stock: The layer of MMDetection whose submodules are adopted.
    """

    def __init__(self, stock: pvt.MixFFN) -> None:
        super().__init__()
        self.layers = stock.layers
        self.dropout_layer = stock.dropout_layer

    def forward(self, x: Tensor, hw_shape: tuple[int, int], identity: Tensor) -> Tensor:
        """Feed the tokens forward.

        Args:
            x: (B, T, D), normed tokens.
            hw_shape: Rows and columns of the tokens.
            identity: (B, T, D), what the result is added to.

        Returns:
            (B, T, D).
        """
        for layer in self.layers:
            if not isinstance(layer, nn.Conv2d):
                x = layer(x)
            elif layer.kernel_size == (1, 1):
                x = linear(x, layer.weight.flatten(1), layer.bias)
            else:
                x = layer(x.unflatten(1, hw_shape).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1, 2)
        return self.dropout_layer(x).add_(identity)


class FFN(nn.Module):
    """Swin's feed-forward layer, which holds its widest map once in training: the activation is made anew.

    Args:
        stock: The layer of mmcv whose submodules are adopted.
    """

    def __init__(self, stock: swin.FFN) -> None:
        super().__init__()
        self.layers = stock.layers
        self.dropout_layer = stock.dropout_layer

    def forward(self, x: Tensor, identity: Tensor) -> Tensor:
        """Feed the tokens forward.

        Args:
            x: (B, T, D), normed tokens.
            identity: (B, T, D), what the result is added to.

        Returns:
            (B, T, D).
        """
        hidden = self.layers[0][0](x)
        # Of the second forward, only what the backward pass needs is run: not the linear layer.
        held = torch.is_grad_enabled() and hidden.requires_grad
        out = checkpoint(self._shrink, hidden, use_reentrant=False) if held else self._shrink(hidden)
        return self.dropout_layer(out).add_(identity)

    def _shrink(self, hidden: Tensor) -> Tensor:
        for layer in (*self.layers[0][1:], *self.layers[1:]):
            hidden = layer(hidden)
        return hidden


class WindowOrder(NamedTuple):
    """Where the tokens of a map stand in its shifted windows: pad, roll and partition as one gather, and one back."""

    source: Tensor
    """(rows cols N,), for each place in a window the token that stands there; any token where there is none."""
    empty: Tensor
    """(rows cols N, 1), bool: the places beyond the map, which hold zeros."""
    target: Tensor
    """(T,), for each token its place."""

    def to_windows(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, rows cols N, D)."""
        if torch.is_grad_enabled() and tokens.requires_grad:
            return _Reorder.apply(tokens, self, True)
        return tokens.index_select(1, self.source).masked_fill_(self.empty, 0)

    def to_map(self, windows: Tensor) -> Tensor:
        """(B, rows cols N, D) -> (B, T, D), the inverse."""
        if torch.is_grad_enabled() and windows.requires_grad:
            return _Reorder.apply(windows, self, False)
        return windows.index_select(1, self.target)


class _Reorder(torch.autograd.Function):
    """The two gathers of a :class:`WindowOrder`, each of which is the gradient of the other."""

    @staticmethod
    def forward(ctx, tokens: Tensor, order: WindowOrder, windows: bool) -> Tensor:
        ctx.order, ctx.windows = order, windows
        return order.to_windows(tokens) if windows else order.to_map(tokens)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return (ctx.order.to_map(grad) if ctx.windows else ctx.order.to_windows(grad)), None, None


def make_window_order(hw_shape: tuple[int, int], size: int, shift: int, device: torch.device) -> WindowOrder:
    """Find the order of a map's tokens in windows of ``size`` rows and columns, after a shift up and left by ``shift``.

    Args:
        hw_shape: Rows and columns of the map.
        size: Rows and columns of a window. The map is padded at the bottom and right to whole windows.
        shift: By how many rows and columns the padded map is rolled before it is cut.
        device: Where the order will be used.
    """
    places, sources, inside = [], [], []
    counts = [(length + size - 1) // size for length in hw_shape]
    for length, count in zip(hw_shape, counts, strict=True):
        line = torch.arange(count * size, device=device)
        # What stands at each place after the roll.
        source = line.roll(-shift)
        sources.append(source.clamp(max=length - 1).unflatten(0, (count, size)))
        inside.append((source < length).unflatten(0, (count, size)))
        places.append(line.roll(shift)[:length])
    # (rows, cols, size, size)
    source = sources[0][:, None, :, None] * hw_shape[1] + sources[1][:, None, :][None]
    empty = ~(inside[0][:, None, :, None] & inside[1][:, None, :][None])
    row, col = places[0][:, None], places[1]
    window = row // size * counts[1] + col // size
    target = (window * size + row % size) * size + col % size
    return WindowOrder(source.flatten(), empty.flatten()[:, None], target.flatten())


def _window_bias(bias: Tensor, mask: Tensor | None, windows: int) -> Tensor:
    """Position bias (heads, N, N) and shift mask (rows cols, N, N) of all windows: (1 or B rows cols, heads, N, N)."""
    if mask is None:
        return bias[None]
    joined = bias + mask[:, None]
    return joined.expand(windows // mask.shape[0], -1, -1, -1, -1).flatten(0, 1)


def _lacks_bias_gradient(query: Tensor) -> bool:
    """Whether PyTorch would hold the attention maps: its fused kernel for the CPU has no gradient of a bias."""
    return query.device.type == 'cpu' and not torch.compiler.is_compiling()


class _BiasedAttention(torch.autograd.Function):
    """Fused attention with a bias that learns: the maps are made anew in the backward pass."""

    @staticmethod
    def forward(
        ctx, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, bias, mask)
        ctx.scale = scale
        joined = _window_bias(bias, mask, query.shape[0])
        return F.scaled_dot_product_attention(query, key, value, joined, scale=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, mask = ctx.saved_tensors
        scores = (query @ key.mT).mul_(ctx.scale).add_(bias)
        if mask is not None:
            scores.unflatten(0, (-1, mask.shape[0])).add_(mask[:, None])
        attention = scores.softmax(dim=3)
        grad_value = attention.mT @ grad
        grad_scores = (grad @ value.mT).mul_(attention)
        grad_scores.addcmul_(attention, grad_scores.sum(dim=3, keepdim=True), value=-1)
        grad_bias = grad_scores.sum(dim=0)
        grad_scores.mul_(ctx.scale)
        return grad_scores @ key, grad_scores.mT @ query, grad_value, grad_bias, None, None


class ShiftWindowMSA(nn.Module):
    """Swin's shifted-window attention on the fused kernel, with a GRC branch where one is given.

    The branch wraps the whole map, not a window: every token reads the one memory of its layer.

    Args:
        stock: The layer of MMDetection whose submodules are adopted.
        grc: The memory of this layer. None: the stock computation.
    """

    def __init__(self, stock: swin.ShiftWindowMSA, grc: GRC | None = None) -> None:
        super().__init__()
        self.window_size = stock.window_size
        self.shift_size = stock.shift_size
        self.w_msa = stock.w_msa
        self.drop = stock.drop
        self.grc = grc

    def forward(
        self,
        x: Tensor,
        hw_shape: tuple[int, int],
        cache: Tensor | None = None,
        resampling: Resampling | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend the tokens in windows, and the memory where there is one.

        Args:
            x: (B, T, D), normed tokens.
            hw_shape: Rows and columns of the tokens.
            cache: (1, T_m, D_m), see :meth:`GRC.forward`.
            resampling: See :meth:`GRC.forward`.

        Returns:
            (B, T, D), and the cache that this step proposes, if any.
        """
        out, proposal = self._attend(x, hw_shape), None
        if self.grc is not None:
            out, proposal = self.grc(x, out, hw_shape, cache, resampling)
        return self.drop(out), proposal

    def _attend(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        size, shift, msa = self.window_size, self.shift_size, self.w_msa
        rows, cols = ((length + size - 1) // size for length in hw_shape)
        order = make_window_order(hw_shape, size, shift, x.device)
        # (B, T, D) -> (B rows cols, N, D), N = size size
        windows = order.to_windows(x).unflatten(1, (-1, size * size)).flatten(0, 1)

        # (B rows cols, N, 3 D) -> 3 x (B rows cols, heads, N, D / heads)
        query, key, value = msa.qkv(windows).unflatten(2, (3, msa.num_heads, -1)).permute(2, 0, 3, 1, 4)
        bias = msa.relative_position_bias_table[msa.relative_position_index].permute(2, 0, 1).to(query.dtype)
        # Tokens that the shift brought together from two sides of the map do not attend each other.
        mask = self._shift_mask(rows, cols, bias) if shift else None
        dropout = msa.attn_drop.p if self.training else 0.0
        if torch.is_grad_enabled() and bias.requires_grad and not dropout and _lacks_bias_gradient(query):
            out = _BiasedAttention.apply(query, key, value, bias, mask, msa.scale)
        else:
            mask = _window_bias(bias, mask, query.shape[0])
            out = F.scaled_dot_product_attention(query, key, value, mask, dropout, scale=msa.scale)
        out = msa.proj_drop(msa.proj(out.transpose(1, 2).flatten(2)))
        return order.to_map(out.unflatten(0, (x.shape[0], -1)).flatten(1, 2))

    def _shift_mask(self, rows: int, cols: int, like: Tensor) -> Tensor:
        """0 where two tokens of a window are neighbours on the map, -100 elsewhere, (rows cols, N, N)."""
        size, shift = self.window_size, self.shift_size
        bands = []
        for count in (rows, cols):
            line = torch.arange(count * size, device=like.device)
            bands.append((line >= (count - 1) * size).int() + (line >= count * size - shift).int())
        region = (3 * bands[0][:, None] + bands[1]).unflatten(1, (cols, size)).unflatten(0, (rows, size))
        region = region.transpose(1, 2).flatten(2).flatten(0, 1)
        return (region[:, None] != region[:, :, None]).to(like.dtype) * -100
