"""Operations between the layers: residual sums, and the layout of gradients. Plain: the sum itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .mode import is_fast

__all__ = ['add_residual', 'keep_token_layout']


def add_residual(identity: Tensor, out: Tensor, dropout: nn.Module) -> Tensor:
    """Compute ``identity + dropout(out)``, (B, T, D) each.

    For a layer that drops whole paths, such as mmcv's and timm's ``DropPath`` with a ``drop_prob``, no scaled map is
    allocated.
    """
    if is_fast() and getattr(dropout, 'drop_prob', None) and dropout.training:
        return torch.addcmul(identity, out, dropout(identity.new_ones(out.shape[0], 1, 1)))
    return identity + dropout(out)


def keep_token_layout(x: Tensor) -> Tensor:
    """Convert the gradient of tokens (B, T, D) to their layout in memory.

    The layers after a stage read a map, and return a gradient in the layout of a map. Without the conversion, every
    sum, copy and product in the stage's blocks would use that layout.
    """
    if is_fast() and x.requires_grad:
        x.register_hook(Tensor.contiguous)
    return x
