"""Self-attention with a memory, for models without code for caches: tokens in, tokens out."""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import commit, copy_caches
from .grc import GRC
from .options import MAX_SILENT_LAMBDA
from .resampling import make_resampling

__all__ = ['GRCAttention', 'commit_caches']


class GRCAttention(nn.Module):
    """Multi-head self-attention of tokens on a grid, with a memory. As easy to use as ``nn.MultiheadAttention``.

    In training mode each forward computes a new cache. By default it is stored at the end of that forward. With
    ``auto_commit=False``, :func:`commit_caches` stores it, once for all layers at the end of a step. Activation
    checkpointing needs this, since it runs a forward twice. It is also faster on several ranks.

    Args:
        embed_dims: Channels of the tokens, ``D``.
        num_heads: Heads.
        cache_size: Rows and columns of the cache, or one number for both.
        qkv_bias: Whether queries, keys and values have a bias.
        attn_drop: Dropout of both attentions, in [0, 1].
        proj_drop: Dropout of both outputs, in [0, 1].
        auto_commit: Whether a training forward stores its new cache itself.
        sync: Whether ranks average their caches, where ``torch.distributed`` is initialised.
        grc: The other arguments of :class:`~mmgrc.models.grc.GRC`, such as ``cache_ratio`` and ``variant``.

    Raises:
        ValueError: ``embed_dims`` is not a multiple of ``num_heads``. See also :class:`~mmgrc.models.grc.GRC`.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        cache_size: int | tuple[int, int],
        *,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        auto_commit: bool = True,
        sync: bool = True,
        **grc,
    ) -> None:
        super().__init__()
        if embed_dims % num_heads:
            raise ValueError(f'embed_dims={embed_dims} is not a multiple of num_heads={num_heads}')
        cache_size = (cache_size, cache_size) if isinstance(cache_size, int) else cache_size
        self.num_heads, self.attn_drop, self.proj_drop = num_heads, attn_drop, proj_drop
        self.auto_commit, self.sync = auto_commit, sync
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims, bias=qkv_bias)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.grc = GRC(
            embed_dims, num_heads, cache_size, qkv_bias=qkv_bias, attn_drop=attn_drop, proj_drop=proj_drop, **grc
        )
        self.new_cache: Tensor | None = None
        """The new cache of the last training forward, until it is stored."""

    def forward(self, x: Tensor, hw_shape: tuple[int, int], valid: Tensor | None = None) -> Tensor:
        """Attend both to the tokens and to the cache.

        Args:
            x: (B, T, D), tokens in row-major order.
            hw_shape: Rows H and columns W of the tokens, T = H W.
            valid: (B, 2), rows and columns of tokens in each image that are not padding, from 1 to H and W. Others are
                clamped. None: all tokens are valid.

        Returns:
            (B, T, D).

        Raises:
            ValueError: The tokens do not fill the grid, or ``valid`` has another shape.
        """
        batch, length = x.shape[:2]
        if length != hw_shape[0] * hw_shape[1]:
            raise ValueError(
                f'hw_shape={tuple(hw_shape)}: {length} tokens do not fill a grid of that size. Leave out tokens '
                'without a place on the grid, such as a class token'
            )
        if valid is not None and valid.shape != (batch, 2):
            raise ValueError(
                f'valid has the shape {tuple(valid.shape)}: give the rows and columns of each image, ({batch}, 2)'
            )
        query, key, value = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.attn_drop if self.training else 0.0
        out = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout).transpose(1, 2).flatten(2)
        attn_out = F.dropout(self.proj(out), self.proj_drop, self.training)

        dtype = torch.promote_types(x.dtype, torch.float32)
        # Filled on the device: copying numbers of the host to a GPU would wait for it.
        extent = torch.stack([x.new_full((batch,), lines, dtype=dtype) for lines in hw_shape], dim=1)
        if valid is not None:
            # To compare the values on a GPU, the host would wait for it.
            extent = torch.minimum(valid.to(extent).clamp(min=1), extent)
        resampling = make_resampling(extent, hw_shape, hw_shape, self.grc.cache_size)
        # A copy: the cache may change before the backward pass.
        cache = copy_caches([self.grc])[self.grc] if self.training else self.grc.cache.clone()
        out, new_cache = self.grc(x, attn_out, hw_shape, cache, resampling)
        if new_cache is not None:
            self.new_cache = new_cache
            if self.auto_commit:
                commit_caches(self)
        return out

    @torch.no_grad()
    def start_silently(self) -> None:
        """Let the layer compute what self-attention alone computes, until its memory has learned.

        Call it once, when ``qkv`` and ``proj`` have the weights to start from, pre-trained or random. The last layers
        of the memory become zero, and ``proj`` is divided, head by head, by 1 - σ(λ), its weight in the mix. The whole
        memory learns: λ and the zero layers from the first step, and the layers before them from the second step.

        Raises:
            ValueError: λ starts so high that almost nothing of self-attention is in the mix.
        """
        if self.grc.lambda_init > MAX_SILENT_LAMBDA:
            raise ValueError(
                f'lambda_init={self.grc.lambda_init}: for a silent start give a number up to {MAX_SILENT_LAMBDA}'
            )
        share = self.grc.silence()
        for parameter in self.proj.parameters():
            # Each row of the weight gives one channel.
            parameter.copy_((parameter.t() / share).t())


@torch.compiler.disable
def commit_caches(model: nn.Module) -> bool:
    """Store the new caches of all :class:`GRCAttention` layers of a model, at the end of a training step.

    One check and one collective serve all layers. Call it on all ranks, before or after the backward pass. With
    activation checkpointing, call it after the backward pass.

    Returns:
        Whether the caches were stored. If a value is not finite on any rank, they do not change, which is logged.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, GRCAttention) and m.new_cache is not None}
    if not layers:
        return True
    new_caches = [(layer.grc, layer.new_cache) for layer in layers.values()]
    skipped_for = commit(new_caches, sync=all(layer.sync for layer in layers.values()))
    for layer in layers.values():
        layer.new_cache = None
    if skipped_for is not None:
        name = next(name for name, layer in layers.items() if layer.grc is skipped_for)
        logging.getLogger('mmgrc').warning('%s: the new cache is not finite; the caches do not change', name or 'GRC')
    return skipped_for is None
