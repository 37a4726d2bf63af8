"""Pyramid Vision Transformers with a memory."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from operator import mul

from mmdet.models.backbones import pvt
from mmengine.registry import MODELS
from mmengine.utils import to_2tuple
from torch import Tensor

from ..convert import convert_pvt
from ..layers.patches import PatchEmbed
from ..layers.positional import PositionalConvolution
from ..layers.pvt import PVTEncoderLayer
from ..ops.folding import FoldedGRC
from ..options import GRCConfig
from .cached import CachedBackbone, make_layer

__all__ = ['GRCPyramidVisionTransformer', 'GRCPyramidVisionTransformerV2']


@MODELS.register_module()
class GRCPyramidVisionTransformer(CachedBackbone, pvt.PyramidVisionTransformer):
    """PVT with GRC attention, `Cached Transformers: Improving Transformers with Differentiable Memory Cache
    <https://arxiv.org/abs/2312.12742>`_.

    It takes the arguments of :class:`mmdet.models.PyramidVisionTransformer`. The state-dict keys of that class do not
    change. The keys of the memory are below ``grc`` in each attention. With ``grc=dict(stages=())`` it is the stock
    backbone, with the same keys and the same values. Inputs that are smaller than a kernel are padded.

    Args:
        pretrain_img_size: Image size for the position embeddings and the default caches.
        grc: Options of the memory, the fields of :class:`~mmgrc.models.GRCConfig`. None: a memory in each stage. Its
            cache has the stage's grid for an image of ``pretrain_img_size``.
        with_cp: Whether to use activation checkpointing in the blocks. Stock PVT lacks this option.
        kwargs: The other arguments of the stock backbone.

    Raises:
        ValueError: An option of ``grc`` is unknown or has an invalid value, or ``frozen_stages`` is given, which PVT
            lacks.
    """

    def __init__(
        self,
        *,
        pretrain_img_size: int | tuple[int, int] = 224,
        grc: Mapping | None = None,
        with_cp: bool = False,
        **kwargs,
    ) -> None:
        if 'frozen_stages' in kwargs:
            raise ValueError(
                f'frozen_stages={kwargs["frozen_stages"]!r}: PVT has no such argument, not in MMDetection either. To '
                "freeze stages, set optim_wrapper.paramwise_cfg.custom_keys={'backbone.layers.0': "
                'dict(lr_mult=0)}, with an entry for each; their caches still change'
            )
        super().__init__(pretrain_img_size=pretrain_img_size, **kwargs)
        image_size = to_2tuple(pretrain_img_size)
        grids = [tuple(size // stride for size in image_size) for stride in accumulate(self.strides, mul)]
        options = GRCConfig.parse(grc, self.num_stages, grids)
        for stage, (patch_embed, blocks, _) in enumerate(self.layers):
            self.layers[stage][0] = PatchEmbed(patch_embed)
            for index, block in enumerate(blocks):
                if isinstance(block, pvt.AbsolutePositionEmbedding):
                    # Stock PVT has NumPy integers here. Exporters mistake them for values that depend on the data.
                    block.pos_shape = tuple(map(int, block.pos_shape))
                if isinstance(block, pvt.PVTEncoderLayer):
                    blocks[index] = PVTEncoderLayer(block, _make_layer(block.attn, options, stage), with_cp)
        self.init_caches(options)

    def convert_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert the state dict of the original PVT, of MMDetection or of the published GRC code to our keys."""
        return convert_pvt(state)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps. In training mode, store the new caches at the end.

        Args:
            x: (B, C, H, W), normalised images, padded with zeros at the bottom and right.

        Returns:
            The maps (B, D_i, H_i, W_i) of the stages in ``out_indices``.
        """
        step, outs = self.begin_step(x), []
        for number, (patch_embed, blocks, norm) in enumerate(self.layers):
            x, hw_shape = patch_embed(x)
            x = step.run(number, blocks, x, hw_shape)
            # A view of the tokens. Only maps that are returned are transposed.
            x = norm(x).unflatten(1, hw_shape).permute(0, 3, 1, 2)
            if number in self.out_indices:
                outs.append(x.contiguous())
        self.commit(step)
        return tuple(outs)


@MODELS.register_module()
class GRCPyramidVisionTransformerV2(GRCPyramidVisionTransformer, pvt.PyramidVisionTransformerV2):
    """PVTv2 with GRC attention: :class:`mmdet.models.PyramidVisionTransformerV2` with the arguments ``grc`` and
    ``with_cp`` of :class:`GRCPyramidVisionTransformer`.
    """


def _make_layer(
    attn: pvt.SpatialReductionAttention, options: GRCConfig, stage: int
) -> FoldedGRC | PositionalConvolution | None:
    return make_layer(
        options,
        stage,
        embed_dims=attn.embed_dims,
        num_heads=attn.num_heads,
        sr_ratio=attn.sr_ratio,
        qkv_bias=attn.attn.in_proj_bias is not None,
        attn_drop=attn.attn.dropout,
        proj_drop=attn.proj_drop.p,
    )
