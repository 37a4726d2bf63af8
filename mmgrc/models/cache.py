"""The state of a model with a memory: how a step reads the caches, and the one place that writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .grc import GRC
from .ops.residual import keep_token_layout
from .options import GRCConfig
from .resampling import Resampling, make_resampling, valid_extent

__all__ = ['CacheStep', 'CachedBlock', 'commit', 'copy_caches']


class CachedBlock(nn.Module):
    """Base of the transformer blocks. A block is a pure function of its arguments and weights, so it can run twice.

    Args:
        with_cp: Whether to store only the inputs of the two halves for the backward pass and recompute the rest.
    """

    norm1: nn.Module
    attn: nn.Module
    """The attention layer. Its ``grc`` has a cache if it is a :class:`GRC` layer."""

    def __init__(self, with_cp: bool = False) -> None:
        super().__init__()
        self.with_cp = with_cp

    def forward(
        self,
        x: Tensor,
        hw_shape: tuple[int, int],
        cache: Tensor | None = None,
        resampling: Resampling | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the block.

        Args:
            x: (B, T, D), tokens.
            hw_shape: Rows and columns of the tokens.
            cache: (1, T_m, D_m), the cache before this step. None without a memory.
            resampling: From the tokens' grid to the cache's. None without a memory.

        Returns:
            (B, T, D), and the new cache (1, T_m, D_m), if any.
        """
        x, new_cache = self._run_half(self._attend, x, hw_shape, cache, resampling)
        return self._run_half(self._feed_forward, x, hw_shape), new_cache

    def _run_half(self, half: Callable, *args):
        # Each half is checkpointed separately, so that the backward pass has only one of them in memory at a time.
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(half, *args, use_reentrant=False)
        return half(*args)

    def _attend(
        self, x: Tensor, hw_shape: tuple[int, int], cache: Tensor | None, resampling: Resampling | None
    ) -> tuple[Tensor, Tensor | None]:
        return self.attn(self.norm1(x), hw_shape, x, cache, resampling)

    def _feed_forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        raise NotImplementedError


class CacheStep:
    """One forward of a backbone. Its blocks read their caches, and the new caches are collected until the end.

    Args:
        options: The options of the memory.
        images: (B, C, H, W), the input.
        caches: Copies of the caches, made before a compiled graph begins. Missing ones are copied here. Graphs use
            only copies, since a commit may come before the backward pass.
    """

    def __init__(self, options: GRCConfig, images: Tensor, caches: Mapping[GRC, Tensor]) -> None:
        self.options = options
        self.caches = caches
        self.image_size = (images.shape[2], images.shape[3])
        self.extent = valid_extent(images) if options.cached_stages else None
        self.new_caches: list[tuple[GRC, Tensor]] = []

    def run(self, stage: int, blocks: Iterable[nn.Module], x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """Run the blocks of a stage.

        Args:
            stage: Its number, from 0.
            blocks: Its blocks, and stock layers between them.
            x: (B, T, D), tokens.
            hw_shape: Rows and columns of the tokens.

        Returns:
            (B, T, D).
        """
        resampling = None
        if self.extent is not None and stage in self.options.cached_stages:
            size = self.options.cache_size(stage)
            resampling = make_resampling(self.extent, self.image_size, hw_shape, size)
        for block in blocks:
            if not isinstance(block, CachedBlock):
                x = block(x, hw_shape)
                continue
            layer = block.attn.grc
            cache = self.caches.get(layer)
            if cache is None and isinstance(layer, GRC):
                cache = layer.cache.clone()
            x, new_cache = block(x, hw_shape, cache, resampling)
            if new_cache is not None:
                self.new_caches.append((layer, new_cache))
        return keep_token_layout(x)


# Not compiled: a compiled graph would store the cache itself for the backward pass instead of the copy.
@torch.compiler.disable
def copy_caches(layers: Iterable[GRC]) -> dict[GRC, Tensor]:
    """Copy the caches of some layers before a step."""
    return {layer: layer.cache.clone() for layer in layers}


@torch.compiler.disable
@torch.no_grad()
def commit(new_caches: Sequence[tuple[GRC, Tensor]], sync: bool = True) -> GRC | None:
    """Write the new caches of a step, in the same way on all ranks.

    One check and one collective serve all layers. A step with a value that is not finite, on any rank, is not written.
    The check is the only place where a backbone's training step waits for a GPU. A check that is read later would save
    that wait, but the message, the count of skipped steps and what is returned would then come a step late.

    Args:
        new_caches: Layers, and their new caches (1, T_m, D_m).
        sync: Whether the ranks average them, if there are several ranks.

    Returns:
        None if the step was written. Otherwise the first layer whose new cache is not finite.
    """
    layers, caches = zip(*new_caches, strict=True)
    flat = torch.cat([cache.flatten() for cache in caches])
    if sync and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        # If a value is not finite on one rank, the sum is not finite on any: all ranks skip together.
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
    new = list(zip(layers, flat.split([cache.numel() for cache in caches]), strict=True))
    if not torch.isfinite(flat).all():
        return next(layer for layer, values in new if not torch.isfinite(values).all())
    for layer, values in new:
        layer.cache.copy_(values.view_as(layer.cache))
    return None
