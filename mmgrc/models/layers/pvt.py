"""The layers of a PVT block. Each adopts the submodules of its stock layer. Construction, initialisation and
state-dict keys are MMDetection's. Only the computation is ours.
"""

from __future__ import annotations

from mmdet.models.backbones import pvt
from torch import Tensor, nn

from ..cache import CachedBlock
from ..grc import GRC
from ..ops.attention import attend_tokens
from ..ops.convolution import convolve_patches, convolve_tokens
from ..ops.linear import linear
from ..ops.residual import add_residual
from .attention import CachedAttention
from .feed_forward import run_in_chunks
from .positional import PositionalConvolution

__all__ = ['MixFFN', 'PVTEncoderLayer', 'SpatialReductionAttention']


class SpatialReductionAttention(CachedAttention):
    """PVT's attention on a fused kernel, optionally with a GRC layer.

    Args:
        stock: The layer of MMDetection whose submodules are adopted.
        grc: See :class:`CachedAttention`.
    """

    output_projection = 'attn.out_proj'

    def __init__(self, stock: pvt.SpatialReductionAttention, grc: GRC | PositionalConvolution | None = None) -> None:
        super().__init__()
        self.attn = stock.attn
        self.proj_drop = stock.proj_drop
        self.dropout_layer = stock.dropout_layer
        self.sr_ratio = stock.sr_ratio
        if self.sr_ratio > 1:
            self.sr = stock.sr
            self.norm = stock.norm
        self.grc = grc

    def _dropouts(self) -> tuple[nn.Dropout, nn.Module]:
        return self.proj_drop, self.dropout_layer

    def _attend_heads(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """The outputs of the heads, concatenated, (B, T, D)."""
        attn, dims = self.attn, self.attn.embed_dim
        weight, bias = attn.in_proj_weight, attn.in_proj_bias
        bias_q, bias_kv = (None, None) if bias is None else (bias[:dims], bias[dims:])
        reduced = x
        if self.sr_ratio > 1:
            reduced, _ = convolve_patches(x.unflatten(1, hw_shape).permute(0, 3, 1, 2), self.sr)
            reduced = self.norm(reduced)
        # (B, K, 2 D) -> 2 x (B, heads, K, D / heads)
        key_value = linear(reduced, weight[dims:], bias_kv).unflatten(2, (2, attn.num_heads, -1))
        key, value = key_value.permute(2, 0, 3, 1, 4)
        return attend_tokens(x, weight[:dims], bias_q, key, value, attn.dropout if self.training else 0.0)


class MixFFN(nn.Module):
    """PVT's feed-forward layer with linear layers instead of 1x1 convolutions, so that tokens are not transposed.

    Args:
        stock: The layer of MMDetection whose submodules are adopted.
    """

    def __init__(self, stock: pvt.MixFFN) -> None:
        super().__init__()
        self.layers = stock.layers
        self.dropout_layer = stock.dropout_layer

    def forward(self, x: Tensor, norm: nn.Module, hw_shape: tuple[int, int]) -> Tensor:
        """Run the feed-forward layer.

        Args:
            x: (B, T, D), tokens. The result is added to them.
            norm: The block's norm for them.
            hw_shape: Rows and columns of the tokens.

        Returns:
            (B, T, D).
        """
        layers, out, width = [norm, *self.layers], x, self.layers[0].out_channels
        for number, layer in enumerate(layers):
            if isinstance(layer, nn.Conv2d) and layer.groups > 1:
                # PVTv2's depthwise convolution also reads the neighbours of a token.
                out = run_in_chunks(layers[:number], out, width)
                out = convolve_tokens(out, hw_shape, layer)
                layers = layers[number + 1 :]
                break
        return add_residual(x, run_in_chunks(layers, out, width), self.dropout_layer)


class PVTEncoderLayer(CachedBlock):
    """A block of PVT.

    Args:
        stock: The block of MMDetection whose submodules are adopted.
        grc: See :class:`CachedAttention`.
        with_cp: See :class:`~mmgrc.models.cache.CachedBlock`.
    """

    def __init__(
        self, stock: pvt.PVTEncoderLayer, grc: GRC | PositionalConvolution | None = None, with_cp: bool = False
    ) -> None:
        super().__init__(with_cp)
        self.norm1 = stock.norm1
        self.attn = SpatialReductionAttention(stock.attn, grc)
        self.norm2 = stock.norm2
        self.ffn = MixFFN(stock.ffn)

    def _feed_forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        return self.ffn(x, self.norm2, hw_shape)
