"""GRC backbones for MMDetection."""

from .grc_pvt import GRCPyramidVisionTransformer, GRCPyramidVisionTransformerV2

__all__ = ['GRCPyramidVisionTransformer', 'GRCPyramidVisionTransformerV2']
