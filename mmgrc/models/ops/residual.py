"""What stands between the layers: residual sums, and the layout of gradients. Plain: the sum itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .mode import is_fast

__all__ = ['add_residual', 'keep_token_layout']


def add_residual(identity: Tensor, out: Tensor, dropout: nn.Module) -> Tensor:
    """``identity + dropout(out)``, (B, T, D) each.

    Where whole paths are dropped, by a layer with a ``drop_prob`` as mmcv's and timm's ``DropPath``, no scaled map is
    made.
    """
    if is_fast() and getattr(dropout, 'drop_prob', None) and dropout.training:
        return torch.addcmul(identity, out, dropout(identity.new_ones(out.shape[0], 1, 1)))
    return identity + dropout(out)


def keep_token_layout(x: Tensor) -> Tensor:
    """Bring the gradient of tokens (B, T, D) to their layout in memory.

    What follows a stage sees a map, and gives a gradient whose channels are apart. Each sum, copy and product of the
    stage's blocks would go on with it.
    """
    if is_fast() and x.requires_grad:
        x.register_hook(Tensor.contiguous)
    return x
