"""GRC attention (gated recurrent cache) of "Cached Transformers", arXiv 2312.12742, Eq. 3 to 5, on torch alone.

Symbols: X (B, T, D), the normed tokens of an attention layer on a grid of H rows and W columns; O_self (B, T, D), the
output of its self-attention; C (1, T_m, D_m), the cache; D_m = r D with the cache ratio r; h, a head.

Nothing here writes state. A layer reads its cache as a constant and returns a new cache with its output.
:mod:`mmgrc.models.cache` writes the new caches of a whole model at once. :mod:`mmgrc.models.ops.folding` computes the
same numbers faster.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .buffer import CacheBuffer
from .options import VARIANTS, cache_channels, checked_choice, default_lambda
from .resampling import Resampling

__all__ = ['GRC', 'MemoryAttention', 'no_autocast']


class MemoryAttention(nn.Module):
    """Multi-head attention of tokens over a cache (Eq. 4, the memory's part).

    This is PVT's spatial-reduction attention on the cache's grid. With ``sr_ratio`` above 1, a strided convolution and
    a norm reduce the cache before the tokens attend to it.

    Args:
        dims: Channels of the cache, ``D_m``.
        num_heads: Heads.
        cache_size: Rows and columns of the cache.
        sr_ratio: Reduction of the cache's rows and of its columns.
        qkv_bias: Whether queries, keys and values have a bias.
        attn_drop: Dropout of the attention, in [0, 1].
        proj_drop: Dropout of the output, in [0, 1].

    Raises:
        ValueError: The cache is smaller than the reduction.
    """

    def __init__(
        self,
        dims: int,
        num_heads: int,
        cache_size: tuple[int, int],
        sr_ratio: int = 1,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if min(cache_size) < sr_ratio:
            raise ValueError(
                f'grc.cache_sizes: a cache of {cache_size[0]} x {cache_size[1]} is smaller than the reduction of its '
                f'stage; give at least {sr_ratio} x {sr_ratio} there'
            )
        self.dims, self.num_heads, self.cache_size = dims, num_heads, cache_size
        self.attn_drop, self.proj_drop = attn_drop, proj_drop
        self.q = nn.Linear(dims, dims, bias=qkv_bias)
        self.kv = nn.Linear(dims, 2 * dims, bias=qkv_bias)
        self.proj = nn.Linear(dims, dims)
        self.sr = nn.Conv2d(dims, dims, kernel_size=sr_ratio, stride=sr_ratio) if sr_ratio > 1 else None
        if self.sr is not None:
            self.norm = nn.LayerNorm(dims)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Attend to the memory.

        Args:
            x: (B, T, D), tokens. Their first ``D_m`` channels give the queries.
            memory: (B, T_m, D_m), or (1, T_m, D_m) if all images attend to the same memory.

        Returns:
            O_mem (B, T, D_m).
        """
        dropout = self.attn_drop if self.training else 0.0
        out = F.scaled_dot_product_attention(
            self.queries(x), *self.keys_and_values(memory, x.shape[0]), dropout_p=dropout
        )
        return F.dropout(self.proj(out.transpose(1, 2).flatten(2)), self.proj_drop, self.training)

    def attention_map(self, x: Tensor, memory: Tensor) -> Tensor:
        """The attention weights, for visualisation. :meth:`forward` never stores them.

        Returns:
            (B, heads, T, K), over the K cells of the reduced cache. Each row sums to 1.
        """
        query, (key, _) = self.queries(x), self.keys_and_values(memory, x.shape[0])
        return (query @ key.mT / query.shape[3] ** 0.5).softmax(dim=3)

    def queries(self, x: Tensor) -> Tensor:
        """Queries (B, heads, T, D_m / heads) of tokens (B, T, D)."""
        return self.q(x[..., : self.dims]).unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def keys_and_values(self, memory: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Keys and values, (B, heads, K, D_m / heads) each, of the reduced memory."""
        if self.sr is not None:
            # In the cache's precision. oneDNN's convolution of few channels is wrong in bfloat16 on CPUs with AMX.
            with no_autocast(memory.device):
                grid = _run_in_precision(self.sr, memory.unflatten(1, self.cache_size).permute(0, 3, 1, 2))
                memory = _run_in_precision(self.norm, grid.flatten(2).mT)
        key_value = self.kv(memory.to(self.kv.weight.dtype)).unflatten(2, (2, self.num_heads, -1))
        key, value = key_value.permute(2, 0, 3, 1, 4)
        return key.expand(batch, -1, -1, -1), value.expand(batch, -1, -1, -1)


class GRC(CacheBuffer):
    """Gives one attention layer a memory (Eq. 3 to 5).

    The cache is a buffer of fixed size that starts with zeros. It is float32 whatever the precision of the rest.

    Args:
        embed_dims: Channels of the attention layer, ``D``.
        num_heads: Heads of the attention layer, and of the memory attention.
        cache_size: Rows and columns of the cache.
        cache_ratio: ``r = D_m / D``, in (0, 1].
        variant: ``'code'`` follows the authors' published module, ``'paper'`` the paper's equations.
        lambda_init: Initial value of the mixing logit λ of every head. None: -1 for ``'code'``, 0 for ``'paper'``.
        pos_conv: Whether to add the positional convolution.
        sr_ratio: Reduction of the cache in the memory attention.
        qkv_bias: Whether the memory attention's queries, keys and values have a bias.
        attn_drop: Dropout of the memory attention, in [0, 1].
        proj_drop: Dropout of the memory attention's output, in [0, 1].

    Raises:
        ValueError: ``cache_ratio`` does not split the channels evenly, the cache is smaller than ``sr_ratio``, or
            ``variant`` is unknown.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        cache_size: tuple[int, int],
        cache_ratio: float = 0.5,
        variant: str = 'code',
        lambda_init: float | None = None,
        pos_conv: bool = True,
        sr_ratio: int = 1,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.dims = dims = cache_channels(embed_dims, num_heads, cache_ratio, pos_conv)
        self.embed_dims, self.num_heads = embed_dims, num_heads
        self.register_cache(cache_size, dims)
        self.variant = checked_choice('variant', variant, VARIANTS)
        self.lambda_init = default_lambda(variant) if lambda_init is None else lambda_init

        self.update_gate = nn.Linear(2 * dims, dims)
        self.reset_gate = nn.Linear(2 * dims, dims)
        self.candidate = nn.Linear(2 * dims, dims)
        self.candidate_norm = nn.LayerNorm(dims) if variant == 'code' else None
        self.mem_attn = MemoryAttention(dims, num_heads, self.cache_size, sr_ratio, qkv_bias, attn_drop, proj_drop)
        self.lam = nn.Parameter(torch.empty(num_heads))
        self.pos_conv = nn.Conv2d(embed_dims, embed_dims, 3, padding=1, groups=dims) if pos_conv else None
        self.reset_parameters()

    def forward(
        self,
        x: Tensor,
        attn_out: Tensor,
        hw_shape: tuple[int, int],
        cache: Tensor,
        resampling: Resampling,
    ) -> tuple[Tensor, Tensor | None]:
        """Update the cache, attend to it, and mix the result with the output of self-attention.

        Args:
            x: X (B, T, D), the normed tokens.
            attn_out: O_self (B, T, D), the output of self-attention for them, after its output projection.
            hw_shape: Rows H and columns W of the tokens, T = H W.
            cache: C (1, T_m, D_m), the cache before this step.
            resampling: From (H, W) to the cache's grid.

        Returns:
            The mix (B, T, D), and the new cache (1, T_m, D_m), detached. In evaluation the latter is None.
        """
        memory, new_cache = cache, None
        if self.variant == 'code' or self.training:
            memory = self.update(cache, self.summarize(x, attn_out, hw_shape, resampling))
        if self.training:
            new_cache = memory.detach().mean(dim=0, keepdim=True)
        if self.variant == 'paper':
            memory = memory.mean(dim=0, keepdim=True)
        return self.attend_and_mix(x, attn_out, hw_shape, memory), new_cache

    def summarize(self, x: Tensor, attn_out: Tensor, hw_shape: tuple[int, int], resampling: Resampling) -> Tensor:
        """The summary X̄ (B, T_m, D_m) of the step's tokens, in the cache's precision."""
        tokens = attn_out if self.variant == 'code' else x
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        with no_autocast(x.device):
            return resampling(tokens[..., : self.dims].to(dtype).unflatten(1, hw_shape))

    def gates(self, cache: Tensor, summary: Tensor) -> tuple[Tensor, Tensor]:
        """The update gate z = σ(W_z [C, X̄]) and the reset gate g = σ(W_g [C, X̄]), (B, T_m, D_m) each (Eq. 3)."""
        with no_autocast(summary.device):
            both = torch.cat([cache.to(summary.dtype).expand_as(summary), summary], dim=2)
            update, reset = (_run_in_precision(gate, both) for gate in (self.update_gate, self.reset_gate))
            return torch.sigmoid(update), torch.sigmoid(reset)

    def update(self, cache: Tensor, summary: Tensor) -> Tensor:
        """The updated cache C' = z C̃ + (1 - z) C of each image, (B, T_m, D_m) (Eq. 3)."""
        with no_autocast(summary.device):
            cache = cache.to(summary.dtype).expand_as(summary)
            update, reset = self.gates(cache, summary)
            if self.candidate_norm is not None:
                # C̃ = LayerNorm(GELU(W_c [g C, X̄]))
                candidate = _run_in_precision(self.candidate, torch.cat([reset * cache, summary], dim=2))
                candidate = _run_in_precision(self.candidate_norm, F.gelu(candidate))
            else:
                # C̃ = W_c [X̄, g C]
                candidate = _run_in_precision(self.candidate, torch.cat([summary, reset * cache], dim=2))
            return update * candidate + (1 - update) * cache

    def attend_and_mix(self, x: Tensor, attn_out: Tensor, hw_shape: tuple[int, int], memory: Tensor) -> Tensor:
        """O^h = σ(λ^h) pad(O_mem^h) + (1 - σ(λ^h)) O_self^h for each head h (Eq. 4, 5), plus the convolution of X."""
        o_mem, o_self = (out.unflatten(2, (self.num_heads, -1)) for out in (self.mem_attn(x, memory), attn_out))
        o_mem = F.pad(o_mem, (0, o_self.shape[3] - o_mem.shape[3]))
        sigma = self.lam.sigmoid().to(o_self.dtype)[:, None]
        out = (sigma * o_mem + (1 - sigma) * o_self).flatten(2)
        if self.pos_conv is not None:
            grid = x.unflatten(1, hw_shape).permute(0, 3, 1, 2)
            out = out + self.pos_conv(grid).permute(0, 2, 3, 1).flatten(1, 2)
        return out

    def reset_parameters(self) -> None:
        """Initialise the weights as PVT does, set λ to ``lambda_init``, and empty the cache."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
            elif isinstance(module, nn.Conv2d):
                module.reset_parameters()
            if isinstance(module, nn.Linear | nn.LayerNorm | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.constant_(self.lam, self.lambda_init)
        self.cache.zero_()

    @torch.no_grad()
    def silence(self) -> Tensor:
        """Let the memory and the convolution add nothing to the mix, by setting their last layers to zero.

        Returns:
            (D,), the factor 1 - σ(λ) that is left to each channel of O_self. If the output projection of self-attention
            is divided by it, the mix is what self-attention alone computes.
        """
        last_layers = nn.ModuleList([self.mem_attn.proj])
        if self.pos_conv is not None:
            last_layers.append(self.pos_conv)
        for parameter in last_layers.parameters():
            nn.init.zeros_(parameter)
        return (1 - self.lam.sigmoid()).repeat_interleave(self.embed_dims // self.num_heads)

    def extra_repr(self) -> str:
        return f'variant={self.variant!r}, cache={self.cache_size[0]}x{self.cache_size[1]}x{self.dims}'


def _run_in_precision(layer: nn.Linear | nn.LayerNorm | nn.Conv2d, x: Tensor) -> Tensor:
    """Compute ``layer(x)``, in the precision of ``x`` if the weights have a lower one."""
    if layer.weight.dtype == x.dtype:
        return layer(x)
    return torch.func.functional_call(
        layer, {name: value.to(x.dtype) for name, value in layer.named_parameters()}, (x,)
    )


def no_autocast(device: torch.device) -> AbstractContextManager:
    """The context in which operations keep the precision of their inputs."""
    # The meta device has no autocast.
    return nullcontext() if device.type == 'meta' else torch.autocast(device.type, enabled=False)
