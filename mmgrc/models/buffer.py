"""The cache as a buffer of fixed size in float32. It refuses a checkpoint with another size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ['CacheBuffer']


class CacheBuffer(nn.Module):
    """Base of modules with a cache (1, T_m, D_m), a buffer that starts with zeros."""

    cache: Tensor
    cache_size: tuple[int, int]
    """Rows and columns of the cache."""

    def register_cache(self, size: tuple[int, int], dims: int) -> None:
        """Create the cache.

        Args:
            size: Its rows and columns, T_m = rows * columns.
            dims: Its channels, ``D_m``.
        """
        self.cache_size = (size[0], size[1])
        self.register_buffer('cache', torch.zeros(1, size[0] * size[1], dims))

    def _apply(self, fn, recurse: bool = True) -> CacheBuffer:
        """Keep the cache in float32 when the rest of the model moves to half precision."""
        exact = self.cache
        super()._apply(fn, recurse)
        if self.cache.dtype in (torch.float16, torch.bfloat16):
            self.cache = exact.to(self.cache.device)
        return self

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """Refuse a cache of another size. Lenient loaders only warn about it.

        Raises:
            ValueError: The checkpoint's cache has another shape.
        """
        stored = state_dict.get(f'{prefix}cache')
        if stored is not None and stored.shape != self.cache.shape:
            rows, cols = self.cache_size
            raise ValueError(
                f"{prefix}cache: the checkpoint's cache has the shape {tuple(stored.shape)}, the model's has "
                f'{tuple(self.cache.shape)} ({rows} x {cols} tokens of {self.cache.shape[2]} channels). Set '
                'grc.cache_sizes and grc.cache_ratio to what the checkpoint was trained with. If '
                'grc.cache_sizes was changed on purpose, write a resized checkpoint with '
                'tools/convert_checkpoint.py --resize-caches.'
            )
        if stored is not None and stored.dtype in (torch.float16, torch.bfloat16):
            # With assign=True, the module would take the stored tensor itself. The dictionary is the loader's own.
            state_dict[f'{prefix}cache'] = stored.float()
        super()._load_from_state_dict(state_dict, prefix, *args)
