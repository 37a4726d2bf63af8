"""Pyramid Vision Transformers with a memory."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from operator import mul

from mmdet.models.backbones import pvt
from mmdet.models.layers import nlc_to_nchw
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import CheckpointLoader
from mmengine.utils import to_2tuple
from torch import Tensor, nn

from .attention import MixFFN, SpatialReductionAttention, pad_to_kernel
from .cache import CachedBackbone
from .convert import convert_pvt, load_converted
from .grc import GRC, GRCConfig, Resampling, make_resampling, valid_extent

__all__ = ['GRCPyramidVisionTransformer', 'GRCPyramidVisionTransformerV2']


class PVTEncoderLayer(nn.Module):
    """A block of PVT on fused kernels.

    Args:
        stock: The block of MMDetection whose submodules are adopted.
        grc: The memory of its attention. None: the stock computation.
    """

    def __init__(self, stock: pvt.PVTEncoderLayer, grc: GRC | None = None) -> None:
        super().__init__()
        self.norm1 = stock.norm1
        self.attn = SpatialReductionAttention(stock.attn, grc)
        self.norm2 = stock.norm2
        self.ffn = MixFFN(stock.ffn)

    def forward(
        self,
        x: Tensor,
        hw_shape: tuple[int, int],
        cache: Tensor | None = None,
        resampling: Resampling | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the block; a pure function of its arguments and weights.

        Args:
            x: (B, T, D), tokens.
            hw_shape: Rows and columns of the tokens.
            cache: (1, T_m, D_m), the cache as it was before this step; None without a memory.
            resampling: From the tokens' grid to the cache's; None without a memory.

        Returns:
            (B, T, D), and the cache (1, T_m, D_m) that this step proposes, if any.
        """
        x, proposal = self.attn(self.norm1(x), hw_shape, x, cache, resampling)
        return self.ffn(self.norm2(x), hw_shape, x), proposal


@MODELS.register_module()
class GRCPyramidVisionTransformer(CachedBackbone, pvt.PyramidVisionTransformer):
    """PVT with GRC attention, `Cached Transformers: Improving Transformers with Differentiable Memory Cache
    <https://arxiv.org/abs/2312.12742>`_.

    It takes the arguments of :class:`mmdet.models.PyramidVisionTransformer`, whose state-dict keys stay as they are;
    those of the memory stand below ``grc`` in each attention. With ``grc=dict(stages=())`` it is the stock backbone,
    key for key and value for value. Inputs smaller than stock PVT accepts are padded where a kernel would not fit.

    Args:
        pretrain_img_size: Image size that the position embeddings and the default caches are made for.
        grc: Options of the memory, the fields of :class:`~mmgrc.models.grc.GRCConfig`. None: a memory in each stage,
            with the cache at the stage's grid for an image of ``pretrain_img_size``.
        kwargs: The other arguments of the stock backbone.

    Raises:
        ValueError: An option of ``grc`` is unknown or has a bad value.
    """

    def __init__(self, *, pretrain_img_size: int | tuple[int, int] = 224, grc: Mapping | None = None, **kwargs) -> None:
        super().__init__(pretrain_img_size=pretrain_img_size, **kwargs)
        image_size = to_2tuple(pretrain_img_size)
        grids = [tuple(size // stride for size in image_size) for stride in accumulate(self.strides, mul)]
        options = GRCConfig.parse(grc, self.num_stages, grids)
        for stage, (_, blocks, _) in enumerate(self.layers):
            for index, block in enumerate(blocks):
                if isinstance(block, pvt.PVTEncoderLayer):
                    branch = _make_branch(block.attn, options, stage) if stage in options.stages else None
                    blocks[index] = PVTEncoderLayer(block, branch)
        self.init_caches(options)

    def init_weights(self) -> None:
        """Initialise from scratch, or from the checkpoint that ``init_cfg`` names.

        Original PVT, MMDetection and published GRC checkpoints are understood. The caches start empty either way.

        Raises:
            ValueError: No tensor of the checkpoint fits.
        """
        if self.init_cfg is None:
            super().init_weights()
            for branch in self.grc_layers().values():
                branch.reset_parameters()
        else:
            checkpoint = CheckpointLoader.load_checkpoint(self.init_cfg['checkpoint'], map_location='cpu')
            load_converted(self, checkpoint, convert_pvt if self.convert_weights else None, with_caches=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps; in training mode the caches are renewed at the end.

        Args:
            x: (B, C, H, W), normalised images, padded with zeros at the bottom and right.

        Returns:
            The maps (B, D_i, H_i, W_i) of the stages in ``out_indices``.
        """
        image_size = tuple(x.shape[2:])
        extent = valid_extent(x) if self.grc.stages else None
        caches, proposals, outs = self.read_caches(), {}, []
        for stage, (patch_embed, blocks, norm) in enumerate(self.layers):
            x, hw_shape = patch_embed(pad_to_kernel(x, patch_embed.projection))
            resampling = None
            if stage in self.grc.stages:
                resampling = make_resampling(extent, image_size, hw_shape, self.grc.cache_sizes[stage])
            for block in blocks:
                if isinstance(block, PVTEncoderLayer):
                    branch = block.attn.grc
                    x, proposal = block(x, hw_shape, caches.get(branch), resampling)
                    if proposal is not None:
                        proposals[branch] = proposal
                else:
                    x = block(x, hw_shape)
            x = nlc_to_nchw(norm(x), hw_shape)
            if stage in self.out_indices:
                outs.append(x)
        self.commit_caches(proposals)
        return tuple(outs)


@MODELS.register_module()
class GRCPyramidVisionTransformerV2(GRCPyramidVisionTransformer, pvt.PyramidVisionTransformerV2):
    """PVTv2 with GRC attention: :class:`mmdet.models.PyramidVisionTransformerV2` with the ``grc`` argument of
    :class:`GRCPyramidVisionTransformer`.
    """


def _make_branch(attn: pvt.SpatialReductionAttention, options: GRCConfig, stage: int) -> GRC:
    return GRC.for_stage(
        options,
        stage,
        embed_dims=attn.embed_dims,
        num_heads=attn.num_heads,
        sr_ratio=attn.sr_ratio,
        qkv_bias=attn.attn.in_proj_bias is not None,
        attn_drop=attn.attn.dropout,
        proj_drop=attn.proj_drop.p,
    )
