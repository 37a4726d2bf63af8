"""GRC backbones for MMDetection."""

from .grc_pvt import GRCPyramidVisionTransformer, GRCPyramidVisionTransformerV2
from .grc_swin import GRCSwinTransformer

__all__ = ['GRCPyramidVisionTransformer', 'GRCPyramidVisionTransformerV2', 'GRCSwinTransformer']
