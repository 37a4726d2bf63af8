"""Multi-head attention that uses every thread. Plain: PyTorch's ``scaled_dot_product_attention``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .chunks import in_chunks
from .linear import linear, prefers_onednn
from .mode import is_fast

__all__ = ['attend', 'attend_tokens']


def attend(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0) -> Tensor:
    """Compute :func:`torch.nn.functional.scaled_dot_product_attention`, with gradients on all threads of a CPU.

    On the CPU, the kernel's backward pass assigns whole heads to threads, and a layer may have only one head. Queries
    are independent of each other, so the function passes parts of them as separate images. With a single image, nothing
    is copied.

    Args:
        query: (B, heads, T, C).
        key: (B, heads, K, C).
        value: (B, heads, K, C).
        dropout: Dropout of the attention, in [0, 1].

    Returns:
        (B, heads, T, C).
    """
    batch, heads, length, _ = query.shape
    parts = 1
    if is_fast() and query.device.type == 'cpu' and torch.is_grad_enabled():
        parts = _count_parts(batch * heads, length, torch.get_num_threads())
    if parts == 1:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    # (B, heads, T, C) -> (B parts, heads, T / parts, C)
    query = query.unflatten(2, (parts, -1)).transpose(1, 2).flatten(0, 1)
    key, value = (x[:, None].expand(-1, parts, -1, -1, -1).flatten(0, 1) for x in (key, value))
    out = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    return out.unflatten(0, (batch, parts)).transpose(1, 2).flatten(2, 3)


def _count_parts(heads: int, length: int, threads: int) -> int:
    """The smallest number of equal parts of ``length`` for which the busiest thread has the least work."""
    divisors = [parts for parts in range(1, threads + 1) if length % parts == 0]
    return min(divisors, key=lambda parts: (-(-heads * parts // threads) / parts, parts))


def attend_tokens(
    x: Tensor, weight: Tensor, bias: Tensor | None, key: Tensor, value: Tensor, dropout: float = 0.0
) -> Tensor:
    """Project tokens to queries and attend.

    PyTorch's kernel for float32 on the CPU uses MKL's matrix product. If oneDNN's product is faster, attention maps
    computed with it, in chunks of tokens, are faster too.

    Args:
        x: (B, T, D), tokens.
        weight: (D, D), the query projection.
        bias: (D,), of the query projection, or None.
        key: (B, heads, K, C).
        value: (B, heads, K, C).
        dropout: Dropout of the attention, in [0, 1].

    Returns:
        (B, T, D), with the heads concatenated.
    """
    heads, keys, channels = key.shape[1:]

    def attend_chunk(x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query = linear(x, weight, bias).unflatten(2, (heads, channels))
        if dropout or not prefers_onednn(x) or x.shape[0] > 1:
            return attend(query.transpose(1, 2), key, value, dropout).transpose(1, 2).flatten(2)
        outs = [
            linear(linear(q, k * channels**-0.5).softmax(dim=1), v.t())
            for q, k, v in zip(query[0].unbind(1), key[0], value[0], strict=True)
        ]
        return torch.cat(outs, dim=1)[None]

    if prefers_onednn(x):
        return in_chunks(attend_chunk, [x], [key, value], width=heads * keys)
    return attend_chunk(x, key, value)
