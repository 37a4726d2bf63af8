"""Feed-forward layers, computed in chunks of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from ..ops.chunks import in_chunks
from ..ops.linear import computes_as_stock, linear

__all__ = ['run_in_chunks']


def run_in_chunks(layers: Sequence[nn.Module], x: Tensor, width: int) -> Tensor:
    """Run layers in sequence. Each layer must process every token independently.

    Args:
        layers: Norms, linear layers, activations, and 1x1 convolutions. The latter run as linear layers.
        x: (B, T, D), tokens.
        width: Channels of the widest map between them.

    Returns:
        (B, T, D_out).
    """
    # For its gradient, the activation needs only its input. From that, the next layer's input can be recomputed.
    activation = next((i for i, layer in enumerate(layers) if not list(layer.parameters())), len(layers))
    first, then = (partial(_run_layers, part) for part in (layers[:activation], layers[activation:]))
    return in_chunks(first, [x], width=width, then=then)


def _run_layers(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        if not isinstance(layer, nn.Conv2d):
            x = layer(x)
        elif computes_as_stock(layer):
            x = linear(x, layer.weight.flatten(1), layer.bias)
        else:
            # (..., D) as a map of one row.
            rows = layer(x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2))
            x = rows.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)
    return x
