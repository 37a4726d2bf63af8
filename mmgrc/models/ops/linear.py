"""Linear layers on PyTorch's fastest matrix product for them on the CPU. Plain: ``nn.Linear``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .mode import has_onednn, onednn_is_faster

__all__ = ['Linear', 'computes_as_stock', 'linear', 'prefers_onednn', 'replace_linear_layers']

_MIN_ROWS = 1024
"""With fewer rows, a convolution takes as long as a matrix product."""


def prefers_onednn(x: Tensor) -> bool:
    """Whether the product of tokens ``x`` (..., D_in) with a matrix is faster as a convolution."""
    single = has_onednn(x, torch.float32) and not torch.is_autocast_enabled('cpu')
    return single and onednn_is_faster() and x.numel() >= _MIN_ROWS * x.shape[-1]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute :func:`torch.nn.functional.linear`, which for float32 on the CPU is MKL's matrix product.

    A 1x1 convolution of the tokens, as a channels-last map, is the same sum on oneDNN. Nothing is copied.

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
    # With one row a dilation changes nothing. Without it a single thread would not use oneDNN.
    out = F.conv2d(rows, weight[:, :, None, None], bias, dilation=(2, 1))
    # As in PyTorch's own linear: not a view, so that in-place additions need no copy in the backward pass.
    return torch.ops.aten._unsafe_view(out.permute(0, 2, 3, 1), (*x.shape[:-1], weight.shape[0]))


class Linear(nn.Linear):
    """A linear layer that uses :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D_in) to (..., D_out), as the stock layer does."""
        return linear(x, self.weight, self.bias)


def computes_as_stock(layer: nn.Module) -> bool:
    """Whether a layer computes its stock operation with its weights, so that fast operations may compute it.

    Adapters, such as those of LoRA, have a ``forward`` of their own, or hooks.
    """
    stock = type(layer).forward.__module__.startswith(('torch.nn.modules.', 'mmcv.', 'mmgrc.'))
    return stock and not (layer._forward_hooks or layer._forward_pre_hooks or 'forward' in vars(layer))


def replace_linear_layers(module: nn.Module) -> None:
    """Replace each linear layer below ``module`` by a :class:`Linear` with the same parameters."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            layer = Linear(child.in_features, child.out_features, child.bias is not None, device='meta')
            layer.weight, layer.bias = child.weight, child.bias
            setattr(module, name, layer)
        else:
            replace_linear_layers(child)
