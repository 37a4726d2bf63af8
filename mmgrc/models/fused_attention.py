"""PyTorch's fused attention, with work for every thread."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ['attend']


def attend(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0) -> Tensor:
    """As :func:`torch.nn.functional.scaled_dot_product_attention`, with gradients made on all threads of a CPU.

    There the kernel's backward pass gives a thread whole heads, of which a layer may have but one. Queries do not see
    each other, so parts of them pass as images of their own. Nothing is copied where an image is attended alone.

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
    if query.device.type == 'cpu' and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        parts = _count_parts(batch * heads, length, torch.get_num_threads())
    if parts == 1:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    # (B, heads, T, C) -> (B parts, heads, T / parts, C)
    query = query.unflatten(2, (parts, -1)).transpose(1, 2).flatten(0, 1)
    key, value = (x[:, None].expand(-1, parts, -1, -1, -1).flatten(0, 1) for x in (key, value))
    read = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    return read.unflatten(0, (batch, parts)).transpose(1, 2).flatten(2, 3)


def _count_parts(heads: int, length: int, threads: int) -> int:
    """Into how many equal parts of ``length`` the busiest of some threads has the least to do; the fewest of them."""
    divisors = [parts for parts in range(1, threads + 1) if length % parts == 0]
    return min(divisors, key=lambda parts: (-(-heads * parts // threads) / parts, parts))
