"""Functions of single tokens, run on a few tokens at a time so that wide maps are never whole. Plain: one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .mode import is_fast, onednn_is_faster

__all__ = ['in_chunks']

_MIN_TOKENS = 1024
"""Fewer are not worth a chunk."""
_THREAD_TOKENS = 1024
_THREAD_SIZE = 2**19
"""A thread's part of the widest map of a chunk, 2 MB in float32: it stays in the core's cache."""


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

    A map that is wider than the tokens, as in feed-forward layers and attention, takes long to get as newly allocated
    memory, and a chunk of it is small enough to be used again and again. Where arithmetic is slow, only what ``then``
    does is recomputed, and what ``function`` does before its last matrix product, which needs its input alone. On
    other devices all runs once on all tokens.

    Args:
        function: Of ``tokens`` and ``context``. It must not mix what stands in different places of axis 1.
        tokens: (B, L, ..., D_i) each: L tokens, or L groups of tokens.
        context: (B, ...) each: what all tokens of an image see.
        width: Channels of the widest map, for each token.
        then: What follows ``function``, of its result: quick to recompute up to the last map that a gradient needs.
        recompute: Whether all of ``function`` may be recomputed where arithmetic is fast.

    Returns:
        (B, L, ..., D_out), what ``function``, or ``then`` after it, returns.
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
