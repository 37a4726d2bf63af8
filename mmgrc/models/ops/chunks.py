"""Run functions of individual tokens on a few tokens at a time, so that wide maps stay small. Plain: one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .mode import is_fast, onednn_is_faster

__all__ = ['in_chunks']

_MIN_TOKENS = 1024
"""Fewer tokens are not split."""
_THREAD_TOKENS = 1024
_THREAD_SIZE = 2**19
"""Size of a thread's part of the widest map of a chunk. 2 MB in float32 stay in the core's cache."""


def in_chunks(
    function: Callable[..., Tensor],
    tokens: Sequence[Tensor],
    context: Sequence[Tensor] = (),
    *,
    width: int,
    then: Callable[[Tensor], Tensor] | None = None,
    recompute: bool = True,
) -> Tensor:
    """Run a function of tokens on the CPU in chunks, and recompute inner maps in the backward pass.

    Feed-forward layers and attention have maps that are wider than the tokens. Allocating memory for such a map takes
    long, whereas the memory of a small chunk is reused. If arithmetic is slow, the backward pass recomputes only
    ``then``, and ``function`` up to its last matrix product, which needs only its input. On other devices
    everything runs once on all tokens.

    Args:
        function: A function of ``tokens`` and ``context``. It must not mix different positions of axis 1.
        tokens: (B, L, ..., D_i) each: L tokens, or L groups of tokens.
        context: (B, ...) each: inputs shared by all tokens of an image.
        width: Channels of the widest map, for each token.
        then: A function of the result of ``function``. Up to the last map that a gradient needs, it is
            quick to recompute.
        recompute: Whether all of ``function`` may be recomputed if arithmetic is fast.

    Returns:
        (B, L, ..., D_out), the result of ``function``, or of ``then`` after it.
    """
    batch, length = tokens[0].shape[:2]
    total = length * tokens[0].shape[2:-1].numel()
    chunked = is_fast() and tokens[0].device.type == 'cpu' and total >= _MIN_TOKENS
    keep_inputs = partial(checkpoint, use_reentrant=False)
    recompute_all = chunked and torch.is_grad_enabled() and recompute and onednn_is_faster()

    def run(*args: Tensor) -> Tensor:
        if then is None:
            return function(*args)
        if chunked and torch.is_grad_enabled() and not recompute_all:
            return keep_inputs(then, keep_inputs(function, *args))
        return then(function(*args))

    if not chunked:
        return run(*tokens, *context)
    count = max(total // (max(_THREAD_TOKENS, _THREAD_SIZE // width) * torch.get_num_threads()), 1)
    sizes = [(length + number) // count for number in range(count)] * batch
    chunks = zip(*(t.flatten(0, 1)[None].split(sizes, dim=1) for t in tokens), strict=True)
    images = list(zip(*(t.split(1) for t in context), strict=True)) or [()] * batch
    run_chunk = partial(keep_inputs, run) if recompute_all else run
    out = torch.cat([run_chunk(*chunk, *images[number // count]) for number, chunk in enumerate(chunks)], dim=1)
    return out.flatten(0, 1).unflatten(0, (batch, length))
