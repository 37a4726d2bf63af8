"""The layers of a Swin block. Each adopts the submodules of its stock layer. Construction, initialisation and
state-dict keys are MMDetection's. Only the computation is ours.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from mmdet.models.backbones import swin
from torch import Tensor, nn

from ..cache import CachedBlock
from ..grc import GRC
from ..ops import is_fast
from ..ops.chunks import in_chunks
from ..ops.residual import add_residual
from ..ops.windows import make_windows
from .attention import CachedAttention
from .feed_forward import run_in_chunks
from .positional import PositionalConvolution

__all__ = ['FFN', 'ShiftWindowMSA', 'SwinBlock']


class FFN(nn.Module):
    """Swin's feed-forward layer, computed in chunks of tokens.

    Args:
        stock: The layer of mmcv whose submodules are adopted.
    """

    def __init__(self, stock: swin.FFN) -> None:
        super().__init__()
        self.layers = stock.layers
        self.dropout_layer = stock.dropout_layer

    def forward(self, x: Tensor, norm: nn.Module) -> Tensor:
        """Run the feed-forward layer.

        Args:
            x: (B, T, D), tokens. The result is added to them.
            norm: The block's norm for them.

        Returns:
            (B, T, D).
        """
        layers = [norm, *self.layers[0], *self.layers[1:]]
        return add_residual(x, run_in_chunks(layers, x, self.layers[0][0].out_features), self.dropout_layer)


class ShiftWindowMSA(CachedAttention):
    """Swin's shifted-window attention on a fused kernel, optionally with a GRC layer.

    The cache of a layer covers the whole map instead of a window. Every token attends to it.

    Args:
        stock: The layer of MMDetection whose submodules are adopted.
        grc: See :class:`CachedAttention`.
        shift_single_window: Whether a map that is a single window is shifted, too.
    """

    output_projection = 'w_msa.proj'

    def __init__(
        self,
        stock: swin.ShiftWindowMSA,
        grc: GRC | PositionalConvolution | None = None,
        shift_single_window: bool = True,
    ) -> None:
        super().__init__()
        self.window_size = stock.window_size
        self.shift_size = stock.shift_size
        self.shift_single_window = shift_single_window
        self.w_msa = stock.w_msa
        self.drop = stock.drop
        self.grc = grc

    def _dropouts(self) -> tuple[nn.Dropout, nn.Module]:
        return self.w_msa.proj_drop, self.drop

    def _attend_heads(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """The outputs of the heads in their windows, concatenated, (B, T, D)."""
        msa = self.w_msa
        shift = self.shift_size if self.shift_single_window or max(hw_shape) > self.window_size else 0
        windows = make_windows(hw_shape, self.window_size, shift, x.device)
        tokens = [windows.partition(x)]
        if shift:
            tokens.append(windows.regions(x.device)[None, :, :, None].expand(x.shape[0], -1, -1, -1))
        bias = msa.relative_position_bias_table[msa.relative_position_index].permute(2, 0, 1)
        widest = max(3 * x.shape[2], msa.num_heads * self.window_size**2)
        return windows.merge(in_chunks(partial(self._attend_windows, bias), tokens, width=widest))

    def _attend_windows(self, bias: Tensor, windows: Tensor, region: Tensor | None = None) -> Tensor:
        """Attend within windows.

        Args:
            bias: (heads, N, N), of the relative positions.
            windows: (B, n, N, D).
            region: (B, n, N, 1), integers. Only tokens of the same region attend to each other.

        Returns:
            (B, n, N, D), with the heads concatenated.
        """
        msa = self.w_msa
        # (B n, N, 3 D) -> 3 x (B n, heads, N, D / heads)
        qkv = msa.qkv(windows.flatten(0, 1)).unflatten(2, (3, msa.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        bias = bias[None].to(query.dtype)
        if region is not None:
            region = region.flatten(0, 1)
            bias = bias + ((region != region.mT).to(query.dtype) * -100)[:, None]
        if is_fast() and query.device.type == 'cpu' and torch.is_grad_enabled() and bias.requires_grad:
            # The fused CPU kernel has no gradient for a bias. PyTorch's fallback is slower than this.
            attention = (query * msa.scale @ key.mT + bias).softmax(dim=3)
            out = msa.attn_drop(attention) @ value
        else:
            dropout = msa.attn_drop.p if self.training else 0.0
            out = F.scaled_dot_product_attention(query, key, value, bias, dropout, scale=msa.scale)
        return out.transpose(1, 2).flatten(2).unflatten(0, windows.shape[:2])


class SwinBlock(CachedBlock):
    """A block of Swin.

    Args:
        stock: The block of MMDetection whose submodules and ``with_cp`` are adopted.
        grc: See :class:`CachedAttention`.
        shift_single_window: See :class:`ShiftWindowMSA`.
    """

    def __init__(
        self,
        stock: swin.SwinBlock,
        grc: GRC | PositionalConvolution | None = None,
        shift_single_window: bool = True,
    ) -> None:
        super().__init__(stock.with_cp)
        self.norm1 = stock.norm1
        self.attn = ShiftWindowMSA(stock.attn, grc, shift_single_window)
        self.norm2 = stock.norm2
        self.ffn = FFN(stock.ffn)

    def _feed_forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        return self.ffn(x, self.norm2)
