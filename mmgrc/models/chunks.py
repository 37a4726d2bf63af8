"""Computations that take each token by itself, made on a few tokens at a time so that wide maps are never whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ['in_chunks']

_MIN_TOKENS = 1024
"""Fewer are not worth a chunk."""
_THREAD_TOKENS = 1024
_THREAD_SIZE = 2**19
"""A thread's part of the widest map of a chunk, 2 MB in float32: it stays in the core's cache."""
_RECOMPUTES = torch.backends.cpu.get_cpu_capability() == 'AVX512'
"""Whether a matrix product takes less time than fresh memory for its result, as it does at AVX-512's rate."""


def in_chunks(
    function: Callable[..., Tensor],
    tokens: Sequence[Tensor],
    context: Sequence[Tensor] = (),
    *,
    width: int,
    then: Callable[[Tensor], Tensor] | None = None,
    recompute: bool = True,
) -> Tensor:
    """Run a function of tokens on the CPU in chunks, and compute inner maps anew in the backward pass.

    A map that is wider than the tokens, as in feed-forward layers and attention, takes long to get as fresh memory, and
    a chunk of it is small enough to be used again and again. Where arithmetic is slow only what ``then`` does is done
    anew. On other devices, and in a graph that is compiled or exported, all runs once on all tokens.

    Args:
        function: Of ``tokens`` and ``context``. It must not mix what stands in different places of axis 1.
        tokens: (B, L, ..., D_i) each: L tokens, or L groups of tokens.
        context: (B, ...) each: what all tokens of an image see.
        width: Channels of the widest map, for each token.
        then: What follows ``function``, of its result: cheap to compute anew up to the last map that a gradient needs.
        recompute: Whether ``function``, too, may be computed anew; else its inner maps are held.

    Returns:
        (B, L, ..., D_out), what ``function``, or ``then`` after it, returns.
    """
    batch, length = tokens[0].shape[:2]
    total = length * tokens[0].shape[2:-1].numel()
    # A graph for any size must not depend on the size: it is asked for last.
    whole = (
        torch.compiler.is_compiling() or torch.jit.is_tracing() or tokens[0].device.type != 'cpu' or total < _MIN_TOKENS
    )
    run = function if then is None else partial(_run_both, function, then)
    if whole:
        return run(*tokens, *context)
    count = max(total // (max(_THREAD_TOKENS, _THREAD_SIZE // width) * torch.get_num_threads()), 1)
    sizes = [(length + number) // count for number in range(count)] * batch
    chunks = zip(*(t.flatten(0, 1)[None].split(sizes, dim=1) for t in tokens), strict=True)
    images = list(zip(*(t.split(1) for t in context), strict=True)) or [()] * batch
    if torch.is_grad_enabled():
        if recompute and _RECOMPUTES:
            run = partial(checkpoint, run, use_reentrant=False)
        elif then is not None:
            # Of ``function``, what comes before its last matrix product is computed anew: that product needs its input.
            run = partial(_run_both, *(partial(checkpoint, part, use_reentrant=False) for part in (function, then)))
    out = torch.cat([run(*chunk, *images[number // count]) for number, chunk in enumerate(chunks)], dim=1)
    return out.flatten(0, 1).unflatten(0, (batch, length))


def _run_both(function: Callable[..., Tensor], then: Callable[[Tensor], Tensor], *args: Tensor) -> Tensor:
    return then(function(*args))
