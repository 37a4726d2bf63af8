"""The GRC backbones, registered with MMEngine."""

from .cached import CachedBackbone
from .pvt import GRCPyramidVisionTransformer, GRCPyramidVisionTransformerV2
from .swin import GRCSwinTransformer

__all__ = ['CachedBackbone', 'GRCPyramidVisionTransformer', 'GRCPyramidVisionTransformerV2', 'GRCSwinTransformer']
