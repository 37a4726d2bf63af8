"""The state of a model with memory: who reads the caches in a step, and the one place where they change."""

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
    """Base of the transformer blocks: a pure function of its arguments and weights, so that it can be run twice.

    Args:
        with_cp: Whether to store only the inputs of the two halves for the backward pass, and recompute the rest.
    """

    attn: nn.Module
    """The attention, whose ``grc`` is its :class:`GRC` layer, or None."""

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
            cache: (1, T_m, D_m), the cache as it was before this step; None without a memory.
            resampling: From the tokens' grid to the cache's; None without a memory.

        Returns:
            (B, T, D), and the new cache (1, T_m, D_m), if any.
        """
        x, new_cache = self._run(self._attend, x, hw_shape, cache, resampling)
        return self._run(self._feed_forward, x, hw_shape), new_cache

    def _run(self, half: Callable, *args):
        # Each half by itself: in the backward pass only one of them is in memory at a time.
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(half, *args, use_reentrant=False)
        return half(*args)

    def _attend(
        self, x: Tensor, hw_shape: tuple[int, int], cache: Tensor | None, resampling: Resampling | None
    ) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError

    def _feed_forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        raise NotImplementedError


class CacheStep:
    """One forward of a backbone: its blocks read their caches, and the new ones are kept for the end.

    Args:
        options: The options of the memory.
        images: (B, C, H, W), its input.
        caches: Copies of the caches, made before a compiled graph begins. Those that are not there are copied here:
            graphs use copies throughout, since a commit may come before the backward pass.
    """

    def __init__(self, options: GRCConfig, images: Tensor, caches: Mapping[GRC, Tensor]) -> None:
        self.options = options
        self.caches = caches
        self.image_size = (images.shape[2], images.shape[3])
        self.extent = valid_extent(images) if options.stages else None
        self.new_caches: list[tuple[GRC, Tensor]] = []

    def run(self, stage: int, blocks: Iterable[nn.Module], x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """Run the blocks of a stage.

        Args:
            stage: Its number, from 0.
            blocks: Its blocks, and stock layers that stand between them.
            x: (B, T, D), tokens.
            hw_shape: Rows and columns of the tokens.

        Returns:
            (B, T, D).
        """
        resampling = None
        if self.extent is not None and stage in self.options.stages:
            size = self.options.cache_size(stage)
            resampling = make_resampling(self.extent, self.image_size, hw_shape, size)
        for block in blocks:
            if not isinstance(block, CachedBlock):
                x = block(x, hw_shape)
                continue
            layer = block.attn.grc
            cache = self.caches.get(layer)
            if cache is None and layer is not None:
                cache = layer.cache.clone()
            x, new_cache = block(x, hw_shape, cache, resampling)
            if new_cache is not None:
                self.new_caches.append((layer, new_cache))
        return keep_token_layout(x)


# Not compiled: a compiled graph would keep the cache itself for the backward pass, and not the copy.
@torch.compiler.disable
def copy_caches(layers: Iterable[GRC]) -> dict[GRC, Tensor]:
    """Copies of the caches of some layers, as they are before a step."""
    return {layer: layer.cache.clone() for layer in layers}


@torch.compiler.disable
@torch.no_grad()
def commit(new_caches: Sequence[tuple[GRC, Tensor]], sync: bool = True) -> GRC | None:
    """Write the new caches of a step, on all ranks alike.

    One check and one collective serve all layers. A step with a value that is not finite, on any rank, is not written
    at all.

    Args:
        new_caches: Layers, and their new caches (1, T_m, D_m).
        sync: Whether ranks average them, where there are several.

    Returns:
        The first layer whose new cache is not finite, if the step was not written for that reason.
    """
    layers, caches = zip(*new_caches, strict=True)
    flat = torch.cat([cache.flatten() for cache in caches])
    if sync and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        # A value that is not finite on one rank makes the sum so on all: they skip together.
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
    new = list(zip(layers, flat.split([cache.numel() for cache in caches]), strict=True))
    if not torch.isfinite(flat).all():
        return next(layer for layer, values in new if not torch.isfinite(values).all())
    for layer, values in new:
        layer.cache.copy_(values.view_as(layer.cache))
    return None
