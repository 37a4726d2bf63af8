"""The stock attention and feed-forward layers of PVT and Swin on fused kernels, under their stock keys.

Each class adopts the submodules of a stock MMDetection layer, so that construction, initialisation and state-dict keys
stay MMDetection's, and only the computation is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.drop import DropPath
from mmdet.models.backbones import pvt, swin
from torch import Tensor, nn

from .chunks import in_chunks
from .convolution import convolve_tokens
from .fused_attention import attend
from .grc import GRC, Resampling
from .linear import linear, prefers_onednn
from .patches import convolve_patches

__all__ = [
    'FFN',
    'MixFFN',
    'ShiftWindowMSA',
    'SpatialReductionAttention',
    'WindowOrder',
    'make_window_order',
]


class SpatialReductionAttention(nn.Module):
    """PVT's attention without attention maps in memory, with a GRC branch where one is given.

    Args:
        stock: The layer of MMDetection whose submodules are adopted.
        grc: The memory of this layer. None: the stock computation.
    """

    output_projection = 'attn.out_proj'
    """The name of the layer that makes ``O_self``."""

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
        out, proposal = self._attend(x, hw_shape), None
        if self.grc is None:
            out = self.proj_drop(out)
        else:
            projected = _project_for_dropout(out, self.attn.out_proj, self.proj_drop)
            out, proposal = self.grc(x, *projected, hw_shape, cache, resampling)
        return _add_residual(identity, out, self.dropout_layer), proposal

    def _attend(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """(B, T, D); not projected yet where there is a memory, which does so."""
        attn = self.attn
        weight, bias, dims = attn.in_proj_weight, attn.in_proj_bias, attn.embed_dim
        attended = x
        if self.sr_ratio > 1:
            attended, _ = convolve_patches(x.unflatten(1, hw_shape).permute(0, 3, 1, 2), self.sr)
            attended = self.norm(attended)
        key_value = linear(attended, weight[dims:], None if bias is None else bias[dims:])
        # (B, K, 2 D) -> 2 x (B, heads, K, D / heads)
        key, value = key_value.unflatten(2, (2, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)

        def attend_chunk(x: Tensor, key: Tensor, value: Tensor) -> Tensor:
            query = linear(x, weight[:dims], None if bias is None else bias[:dims])
            read = _attend(query, key, value, attn.dropout if self.training else 0.0)
            return attn.out_proj(read) if self.grc is None else read

        if not prefers_onednn(x):
            # No map is made, and what was read is held once only.
            return attend_chunk(x, key, value)
        return in_chunks(attend_chunk, [x], [key, value], width=attn.num_heads * key.shape[2])


def _add_residual(identity: Tensor, out: Tensor, dropout: nn.Module) -> Tensor:
    """``identity + dropout(out)``, (B, T, D) each. Where whole paths are dropped no scaled map is made."""
    if isinstance(dropout, DropPath) and dropout.training and dropout.drop_prob:
        return torch.addcmul(identity, out, dropout(identity.new_ones(len(out), 1, 1)))
    return identity + dropout(out)


def _project_for_dropout(read: Tensor, proj: nn.Linear, dropout: nn.Dropout) -> tuple[Tensor, nn.Linear | None]:
    """What self-attention read, and its projection. Where dropout acts on the projected tokens: those, and None."""
    return (dropout(proj(read)), None) if dropout.training and dropout.p else (read, proj)


def _attend(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0) -> Tensor:
    """Multi-head attention, as :func:`torch.nn.functional.scaled_dot_product_attention` with the heads side by side.

    PyTorch's kernel for float32 on the CPU is built on MKL's matrix product; for the tokens of one image our linear
    layer is faster, at the price of an attention map: hence chunks.

    Args:
        query: (B, T, heads C).
        key: (B, heads, K, C).
        value: (B, heads, K, C).
        dropout: Dropout of the attention, in [0, 1].

    Returns:
        (B, T, heads C).
    """
    heads, _, channels = key.shape[1:]
    queries = query.unflatten(2, (heads, channels))
    if dropout or not prefers_onednn(query) or query.shape[0] > 1:
        return attend(queries.transpose(1, 2), key, value, dropout).transpose(1, 2).flatten(2)
    reads = [
        linear(linear(q, k * channels**-0.5).softmax(dim=1), v.t())
        for q, k, v in zip(queries[0].unbind(1), key[0], value[0], strict=True)
    ]
    return torch.cat(reads, dim=1)[None]


class MixFFN(nn.Module):
    """PVT's feed-forward layer with its 1x1 convolutions as linear layers: tokens need no transposition.

    Args:
        stock: The layer of MMDetection whose submodules are adopted.
    """

    def __init__(self, stock: pvt.MixFFN) -> None:
        super().__init__()
        self.layers = stock.layers
        self.dropout_layer = stock.dropout_layer

    def forward(self, x: Tensor, norm: nn.Module, hw_shape: tuple[int, int]) -> Tensor:
        """Feed the tokens forward.

        Args:
            x: (B, T, D), tokens; the result is added to them.
            norm: The block's norm of them.
            hw_shape: Rows and columns of the tokens.

        Returns:
            (B, T, D).
        """
        layers, out, width = [norm, *self.layers], x, self.layers[0].out_channels
        for number, layer in enumerate(layers):
            if isinstance(layer, nn.Conv2d) and layer.groups > 1:
                # PVTv2's depthwise convolution sees a token's neighbours.
                out = _run_in_chunks(layers[:number], out, width)
                out = convolve_tokens(out, hw_shape, layer)
                layers = layers[number + 1 :]
                break
        return _add_residual(x, _run_in_chunks(layers, out, width), self.dropout_layer)


class FFN(nn.Module):
    """Swin's feed-forward layer in chunks of the tokens.

    Args:
        stock: The layer of mmcv whose submodules are adopted.
    """

    def __init__(self, stock: swin.FFN) -> None:
        super().__init__()
        self.layers = stock.layers
        self.dropout_layer = stock.dropout_layer

    def forward(self, x: Tensor, norm: nn.Module) -> Tensor:
        """Feed the tokens forward.

        Args:
            x: (B, T, D), tokens; the result is added to them.
            norm: The block's norm of them.

        Returns:
            (B, T, D).
        """
        layers = [norm, *self.layers[0], *self.layers[1:]]
        return _add_residual(x, _run_in_chunks(layers, x, self.layers[0][0].out_features), self.dropout_layer)


def _run_in_chunks(layers: Sequence[nn.Module], x: Tensor, width: int) -> Tensor:
    """Run layers of which each takes each token by itself, on tokens (B, T, D) that are ``width`` channels at most."""
    weightless = [number for number, layer in enumerate(layers) if not any(True for _ in layer.parameters())]
    # The activation needs its input alone for the gradient, and gives the next layer's input anew.
    activation = weightless[0] if weightless else len(layers)
    first, then = (partial(_run, part) for part in (layers[:activation], layers[activation:]))
    return in_chunks(first, [x], width=width, then=then)


def _run(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        x = linear(x, layer.weight.flatten(1), layer.bias) if isinstance(layer, nn.Conv2d) else layer(x)
    return x


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


class ShiftWindowMSA(nn.Module):
    """Swin's shifted-window attention on the fused kernel, with a GRC branch where one is given.

    The branch wraps the whole map, not a window: every token reads the one memory of its layer.

    Args:
        stock: The layer of MMDetection whose submodules are adopted.
        grc: The memory of this layer. None: the stock computation.
    """

    output_projection = 'w_msa.proj'
    """The name of the layer that makes ``O_self``."""

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
        identity: Tensor,
        cache: Tensor | None = None,
        resampling: Resampling | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend the tokens in windows, and the memory where there is one.

        Args:
            x: (B, T, D), normed tokens.
            hw_shape: Rows and columns of the tokens.
            identity: (B, T, D), what the result is added to.
            cache: (1, T_m, D_m), see :meth:`GRC.forward`.
            resampling: See :meth:`GRC.forward`.

        Returns:
            (B, T, D), and the cache that this step proposes, if any.
        """
        out, proposal = self._attend(x, hw_shape), None
        if self.grc is not None:
            projected = _project_for_dropout(out, self.w_msa.proj, self.w_msa.proj_drop)
            out, proposal = self.grc(x, *projected, hw_shape, cache, resampling)
        return _add_residual(identity, out, self.drop), proposal

    def _attend(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """(B, T, D); not projected yet where there is a memory, which does so."""
        size, shift, msa = self.window_size, self.shift_size, self.w_msa
        order = make_window_order(hw_shape, size, shift, x.device)
        # (B, T, D) -> (B, rows cols, N, D), N = size size
        windows = [order.to_windows(x).unflatten(1, (-1, size * size))]
        if shift:
            windows.append(self._regions(hw_shape, x).expand(x.shape[0], -1, -1, -1))
        bias = msa.relative_position_bias_table[msa.relative_position_index].permute(2, 0, 1)
        widest = max(3 * x.shape[2], msa.num_heads * size * size)
        out = in_chunks(partial(self._attend_windows, bias), windows, width=widest)
        return order.to_map(out.flatten(1, 2))

    def _attend_windows(self, bias: Tensor, windows: Tensor, region: Tensor | None = None) -> Tensor:
        """Attend within windows (B, n, N, D), whose tokens are of a region (B, n, N, 1); bias (heads, N, N)."""
        msa = self.w_msa
        # (B n, N, 3 D) -> 3 x (B n, heads, N, D / heads)
        qkv = msa.qkv(windows.flatten(0, 1))
        query, key, value = qkv.unflatten(2, (3, msa.num_heads, -1)).permute(2, 0, 3, 1, 4)
        bias = bias[None].to(query.dtype)
        if region is not None:
            # Tokens that the shift brought together from two sides of the map do not attend each other.
            region = region.flatten(0, 1)
            bias = bias + ((region != region.mT).to(query.dtype) * -100)[:, None]
        if query.device.type == 'cpu' and torch.is_grad_enabled() and bias.requires_grad:
            # The fused kernel for the CPU has no gradient of a bias; what PyTorch does instead is slower than this.
            attention = (query * msa.scale @ key.mT + bias).softmax(dim=3)
            out = msa.attn_drop(attention) @ value
        else:
            dropout = msa.attn_drop.p if self.training else 0.0
            out = F.scaled_dot_product_attention(query, key, value, bias, dropout, scale=msa.scale)
        out = out.transpose(1, 2).flatten(2)
        return (msa.proj_drop(msa.proj(out)) if self.grc is None else out).unflatten(0, windows.shape[:2])

    def _regions(self, hw_shape: tuple[int, int], like: Tensor) -> Tensor:
        """The part of the map that each token of a window comes from, (1, rows cols, N, 1)."""
        size, shift = self.window_size, self.shift_size
        counts = [(length + size - 1) // size for length in hw_shape]
        bands = []
        for count in counts:
            line = torch.arange(count * size, device=like.device)
            bands.append((line >= (count - 1) * size).int() + (line >= count * size - shift).int())
        region = (3 * bands[0][:, None] + bands[1]).unflatten(1, (counts[1], size)).unflatten(0, (counts[0], size))
        return region.transpose(1, 2).flatten(2).flatten(0, 1)[None, :, :, None]
