"""What the attention layers of PVT and Swin share: the output of self-attention, mixed with that of a GRC layer."""

from __future__ import annotations

from torch import Tensor, nn

from ..grc import GRC
from ..ops.folding import project
from ..ops.residual import add_residual
from ..resampling import Resampling
from .positional import PositionalConvolution

__all__ = ['CachedAttention']


class CachedAttention(nn.Module):
    """Base of the attention layers.

    A subclass registers ``grc`` last, so that the parameters of the stock layer keep their order.
    """

    output_projection: str
    """The name of the layer whose output is ``O_self``."""
    grc: GRC | PositionalConvolution | None
    """The GRC layer of this attention, or only its convolution. None: the stock computation."""

    def forward(
        self,
        x: Tensor,
        hw_shape: tuple[int, int],
        identity: Tensor,
        cache: Tensor | None = None,
        resampling: Resampling | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend to the tokens, and to the cache if there is one.

        Args:
            x: (B, T, D), normed tokens.
            hw_shape: Rows and columns of the tokens.
            identity: (B, T, D), the tensor that the result is added to.
            cache: (1, T_m, D_m), see :meth:`GRC.forward`.
            resampling: See :meth:`GRC.forward`.

        Returns:
            (B, T, D), and the new cache, if any.
        """
        heads, proj = self._attend_heads(x, hw_shape), self.get_submodule(self.output_projection)
        proj_drop, path_drop = self._dropouts()
        new_cache = None
        if isinstance(self.grc, GRC):
            out, new_cache = self.grc(x, project(heads, proj, proj_drop, self.grc), hw_shape, cache, resampling)
        else:
            out = proj_drop(proj(heads))
            if self.grc is not None:
                out = out + self.grc(x, hw_shape)
        return add_residual(identity, out, path_drop), new_cache

    def _attend_heads(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """The outputs of the heads, concatenated, (B, T, D)."""
        raise NotImplementedError

    def _dropouts(self) -> tuple[nn.Dropout, nn.Module]:
        """The dropout of the projected tokens, and that of the residual path."""
        raise NotImplementedError
