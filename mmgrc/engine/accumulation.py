"""Gradient accumulation: which batches have not reached the weights yet."""

from __future__ import annotations

from mmengine.optim import BaseOptimWrapper, OptimWrapper, OptimWrapperDict

__all__ = ['pending_batches']


def pending_batches(wrapper: BaseOptimWrapper) -> int:
    """Count the batches whose gradients are accumulated and not applied yet. A checkpoint does not contain them.

    Args:
        wrapper: The ``optim_wrapper`` of a runner, after a training step.

    Returns:
        Their number. Of several optimizers in an ``OptimWrapperDict``, that of the one with the most. 0 for a wrapper
        of another kind, which does not count.
    """
    if isinstance(wrapper, OptimWrapperDict):
        return max((pending_batches(part) for part in wrapper.values()), default=0)
    if not isinstance(wrapper, OptimWrapper) or wrapper.should_update():
        return 0
    return wrapper.inner_count % wrapper._accumulative_counts
