"""Swin Transformers with a memory."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from operator import mul

import torch.nn.functional as F
from mmdet.models.backbones import swin
from mmengine.registry import MODELS
from mmengine.utils import to_2tuple
from torch import Tensor, nn

from ..convert import convert_swin
from ..layers.patches import PatchEmbed, PatchMerging
from ..layers.positional import PositionalConvolution
from ..layers.swin import SwinBlock
from ..ops.folding import FoldedGRC
from ..options import GRCConfig
from .cached import CachedBackbone, make_layer

__all__ = ['GRCSwinTransformer']

# The paper pools the caches of the first two stages by 4 and 2: grids of 14, 14, 14 and 7 at 224.
_CACHE_POOLING = (4, 2, 1, 1)


@MODELS.register_module()
class GRCSwinTransformer(CachedBackbone, swin.SwinTransformer):
    """Swin with GRC attention, `Cached Transformers: Improving Transformers with Differentiable Memory Cache
    <https://arxiv.org/abs/2312.12742>`_.

    It takes the arguments of :class:`mmdet.models.SwinTransformer`. The state-dict keys of that class do not change.
    The keys of the memory are below ``grc`` in each attention. With ``grc=dict(stages=())`` it is the stock backbone,
    with the same keys and the same values. Neither the paper nor its code describes the memory of Swin. Here the cache
    of a layer covers the whole map instead of a window, and every token attends to it.

    Args:
        pretrain_img_size: Image size for the position embeddings and the default caches.
        grc: Options of the memory, the fields of :class:`~mmgrc.models.GRCConfig`. None: a memory in each stage. Its
            cache has the stage's grid for ``pretrain_img_size``, pooled by 4 and 2 in the first two stages.
        shift_single_window: Whether blocks with shifted windows also shift, and mask, a map that is a single window, as
            MMDetection's class does. The original Swin does not. At 224 pixels this is the map of the last stage.
        kwargs: The other arguments of the stock backbone. With ``frozen_stages`` the caches of the frozen stages
            do not change either.

    Raises:
        ValueError: An option of ``grc`` is unknown or has an invalid value, or ``frozen_stages`` is larger than the
            number of stages.
    """

    def __init__(
        self,
        *,
        pretrain_img_size: int | tuple[int, int] = 224,
        grc: Mapping | None = None,
        shift_single_window: bool = True,
        **kwargs,
    ) -> None:
        super().__init__(pretrain_img_size=pretrain_img_size, **kwargs)
        image_size = to_2tuple(pretrain_img_size)
        strides = list(accumulate(kwargs.get('strides', (4, 2, 2, 2)), mul))
        self.pretrain_grid = tuple(size // strides[0] for size in image_size)
        grids = [
            tuple(max(size // stride // pooling, 1) for size in image_size)
            for stride, pooling in zip(strides, _CACHE_POOLING, strict=False)
        ]
        options = GRCConfig.parse(grc, len(self.stages), grids)
        if not isinstance(self.frozen_stages, int) or not -1 <= self.frozen_stages <= len(self.stages):
            raise ValueError(
                f'frozen_stages={self.frozen_stages!r}: give a whole number from -1 (nothing is frozen) to '
                f'{len(self.stages)} (patch embedding and all stages)'
            )
        self.patch_embed: nn.Module = PatchEmbed(self.patch_embed)
        for number, stage in enumerate(self.stages):
            for index, block in enumerate(stage.blocks):
                stage.blocks[index] = SwinBlock(
                    block, _make_layer(block.attn.w_msa, options, number), shift_single_window
                )
            if stage.downsample and PatchMerging.fits(stage.downsample):
                stage.downsample = PatchMerging(stage.downsample)
        self.init_caches(options)
        # The stock class freezes only in train(), which is called after DDP has registered all parameters as trainable.
        self._freeze_stages()

    def train(self, mode: bool = True) -> GRCSwinTransformer:
        """Set the mode, except for frozen stages. Return the backbone, which the stock class does not."""
        super().train(mode)
        return self

    def convert_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert the state dict of the original Swin or of MMDetection to our keys."""
        return convert_swin(state)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps. In training mode, store the new caches at the end.

        Args:
            x: (B, C, H, W), normalised images, padded with zeros at the bottom and right.

        Returns:
            The maps (B, D_i, H_i, W_i) of the stages in ``out_indices``.
        """
        step, outs = self.begin_step(x), []
        x, hw_shape = self.patch_embed(x)
        if self.use_abs_pos_embed:
            x = x + self._position_embedding(hw_shape)
        x = self.drop_after_pos(x)
        for number, stage in enumerate(self.stages):
            x = step.run(number, stage.blocks, x, hw_shape)
            if number in self.out_indices:
                out = getattr(self, f'norm{number}')(x)
                outs.append(out.unflatten(1, hw_shape).permute(0, 3, 1, 2).contiguous())
            if stage.downsample:
                x, hw_shape = stage.downsample(x, hw_shape)
        self.commit(step)
        return tuple(outs)

    def _position_embedding(self, hw_shape: tuple[int, int]) -> Tensor:
        """The absolute position embedding, resized if the map has another size than in pre-training."""
        if tuple(hw_shape) == self.pretrain_grid:
            return self.absolute_pos_embed
        grid = self.absolute_pos_embed.unflatten(1, self.pretrain_grid).permute(0, 3, 1, 2)
        return F.interpolate(grid, size=hw_shape, mode='bicubic').flatten(2).transpose(1, 2)


def _make_layer(attn: swin.WindowMSA, options: GRCConfig, stage: int) -> FoldedGRC | PositionalConvolution | None:
    return make_layer(
        options,
        stage,
        embed_dims=attn.embed_dims,
        num_heads=attn.num_heads,
        qkv_bias=attn.qkv.bias is not None,
        attn_drop=attn.attn_drop.p,
        proj_drop=attn.proj_drop.p,
    )
