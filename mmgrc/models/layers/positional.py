"""The part of a GRC layer that is left without a memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.convolution import convolve_tokens
from ..options import cache_channels

__all__ = ['PositionalConvolution']


class PositionalConvolution(nn.Module):
    """The positional convolution of :class:`~mmgrc.models.grc.GRC` alone, with the same weights and keys.

    Args:
        embed_dims: Channels of the tokens, ``D``.
        num_heads: Heads of the attention layer.
        cache_ratio: The convolution has as many groups as the cache of that ratio would have channels.

    Raises:
        ValueError: ``cache_ratio`` does not split the channels evenly.
    """

    def __init__(self, embed_dims: int, num_heads: int, cache_ratio: float = 0.5) -> None:
        super().__init__()
        groups = cache_channels(embed_dims, num_heads, cache_ratio, pos_conv=True)
        self.embed_dims = embed_dims
        self.pos_conv = nn.Conv2d(embed_dims, embed_dims, 3, padding=1, groups=groups)
        self.reset_parameters()

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """Convolve tokens (B, T, D) on their grid of H rows and W columns, T = H W.

        Returns:
            (B, T, D).
        """
        return convolve_tokens(x, hw_shape, self.pos_conv)

    def reset_parameters(self) -> None:
        """Initialise the weights as :meth:`GRC.reset_parameters <mmgrc.models.grc.GRC.reset_parameters>` does."""
        self.pos_conv.reset_parameters()
        assert self.pos_conv.bias is not None
        nn.init.zeros_(self.pos_conv.bias)

    def silence(self) -> Tensor:
        """Let the convolution add nothing, see :meth:`GRC.silence <mmgrc.models.grc.GRC.silence>`.

        Returns:
            (D,), ones: without a memory, all of O_self is left.
        """
        for parameter in self.pos_conv.parameters():
            nn.init.zeros_(parameter)
        return torch.ones(self.embed_dims, device=self.pos_conv.weight.device)
