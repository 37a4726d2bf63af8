"""GRC with its mix folded into two output projections. Plain: :class:`mmgrc.models.grc.GRC`, whose code it follows."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..grc import GRC, no_autocast
from ..resampling import Resampling
from .attention import attend
from .chunks import in_chunks
from .convolution import convolve_tokens
from .linear import computes_as_stock, linear
from .mode import is_fast

__all__ = ['FoldedGRC', 'Unprojected', 'project']


class Unprojected(NamedTuple):
    """``O_self`` before its output projection."""

    heads: Tensor
    """(B, T, D), the outputs of the self-attention heads, concatenated."""
    proj: nn.Linear
    """The output projection of self-attention, D to D."""


def project(heads: Tensor, proj: nn.Linear, dropout: nn.Dropout, grc: GRC) -> Tensor | Unprojected:
    """Project the heads' outputs (B, T, D), or leave that to ``grc`` if it can fold the projection."""
    folds = is_fast() and not (dropout.p and dropout.training)
    if folds and computes_as_stock(proj) and computes_as_stock(grc.mem_attn.proj):
        return Unprojected(heads, proj)
    return dropout(proj(heads))


class FoldedGRC(GRC):
    """A :class:`GRC` that also takes ``O_self`` before its output projection.

    σ(λ) scales the memory's output per head, zeros pad its channels to D / heads, and 1 - σ(λ) scales O_self. All of
    this is linear, so it can be folded into the two output projections. Neither O_self nor a padded or scaled map is
    computed or stored for the backward pass. For the same reason the summary projects the mean of the tokens, which is
    far smaller. Given a tensor, the layer computes the same as its base class.
    """

    def summarize(
        self, x: Tensor, attn_out: Tensor | Unprojected, hw_shape: tuple[int, int], resampling: Resampling
    ) -> Tensor:
        """See :meth:`GRC.summarize`."""
        if isinstance(attn_out, Tensor):
            return super().summarize(x, attn_out, hw_shape, resampling)
        code = self.variant == 'code'
        tokens = attn_out.heads if code else x
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        with no_autocast(x.device):
            # Resample all channels: a slice of the tokens would be copied, and its gradient padded with zeros.
            summary = resampling(tokens.to(dtype).unflatten(1, hw_shape))
            if code:
                weight, bias = attn_out.proj.weight[: self.dims].to(dtype), attn_out.proj.bias
                summary = F.linear(summary, weight, None if bias is None else bias[: self.dims].to(dtype))
            return summary[..., : self.dims]

    def attend_and_mix(
        self, x: Tensor, attn_out: Tensor | Unprojected, hw_shape: tuple[int, int], memory: Tensor
    ) -> Tensor:
        """See :meth:`GRC.attend_and_mix`."""
        if isinstance(attn_out, Tensor):
            return super().attend_and_mix(x, attn_out, hw_shape, memory)
        sigma, mem_attn = self.lam.sigmoid(), self.mem_attn
        rows, padding = (self.num_heads, -1), (self.embed_dims - self.dims) // self.num_heads
        weight = F.pad(sigma[:, None, None] * mem_attn.proj.weight.unflatten(0, rows), (0, 0, 0, padding)).flatten(0, 1)
        bias = F.pad(sigma[:, None] * mem_attn.proj.bias.unflatten(0, rows), (0, padding)).flatten()
        keep = (1 - sigma).repeat_interleave(self.embed_dims // self.num_heads)
        weight_self = keep[:, None] * attn_out.proj.weight
        bias_self = None if attn_out.proj.bias is None else keep * attn_out.proj.bias

        def mix(x: Tensor, heads: Tensor, key: Tensor, value: Tensor) -> Tensor:
            dropout = mem_attn.attn_drop if self.training else 0.0
            o_mem = attend(mem_attn.queries(x), key, value, dropout).transpose(1, 2).flatten(2)
            o_mem = F.dropout(linear(o_mem, weight, bias), mem_attn.proj_drop, self.training)
            return o_mem.add_(linear(heads, weight_self, bias_self))

        context = mem_attn.keys_and_values(memory, x.shape[0])
        out = in_chunks(mix, [x, attn_out.heads], context, width=x.shape[2], recompute=False)
        return out if self.pos_conv is None else out + convolve_tokens(x, hw_shape, self.pos_conv)
