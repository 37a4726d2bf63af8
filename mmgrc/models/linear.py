"""Linear layers on the fastest kernel that PyTorch has for them on the CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ['Linear', 'is_eager_float32', 'linear', 'prefers_onednn', 'replace_linear_layers']

_MIN_ROWS = 1024
"""Below, a convolution takes as long as a matrix product."""
_ONEDNN_IS_WIDER = torch.backends.cpu.get_cpu_capability() == 'AVX512'
"""Whether oneDNN is faster than MKL, which on an AMD stays at the rate of AVX2: 500 against 230 GFLOP/s on a Zen 5.
Without AVX-512 MKL is ahead: 161 against 144 on a Zen 3."""


def prefers_onednn(x: Tensor) -> bool:
    """Whether the product of tokens ``x`` (..., D_in) with a matrix is faster as a convolution."""
    return _ONEDNN_IS_WIDER and is_eager_float32(x) and x.numel() >= _MIN_ROWS * x.shape[-1]


def is_eager_float32(x: Tensor) -> bool:
    """Whether ``x`` is computed with in float32 on the CPU, with oneDNN at hand, and not for a compiled graph."""
    return (
        not torch.compiler.is_compiling()
        and x.device.type == 'cpu'
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled('cpu')
        and torch.backends.mkldnn.is_available()
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As :func:`torch.nn.functional.linear`, which for float32 on the CPU is MKL's matrix product.

    A 1x1 convolution of the tokens, seen as a channels-last map, is the same sum on oneDNN, and nothing is copied. With
    AVX-512 on an AMD it is twice as fast. A graph that is compiled or exported gets the plain layer.

    Args:
        x: (..., D_in).
        weight: (D_out, D_in).
        bias: (D_out,), or None.

    Returns:
        (..., D_out).
    """
    if not prefers_onednn(x):
        return F.linear(x, weight, bias)
    # (..., D_in) -> (1, D_in, 1, rows)
    rows = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)
    # Along one row a dilation changes nothing; without it a single thread would not get oneDNN.
    out = F.conv2d(rows, weight[:, :, None, None], bias, dilation=(2, 1))
    # As in PyTorch's own linear: no view, so that what is added in place needs no copy in the backward pass.
    return torch.ops.aten._unsafe_view(out.permute(0, 2, 3, 1), (*x.shape[:-1], weight.shape[0]))


class Linear(nn.Linear):
    """A linear layer on :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """As the stock layer, (..., D_in) to (..., D_out)."""
        return linear(x, self.weight, self.bias)


def replace_linear_layers(module: nn.Module) -> None:
    """Put a :class:`Linear` with the same parameters in the place of each linear layer below ``module``."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            layer = Linear(child.in_features, child.out_features, child.bias is not None, device='meta')
            layer.weight, layer.bias = child.weight, child.bias
            setattr(module, name, layer)
        else:
            replace_linear_layers(child)
