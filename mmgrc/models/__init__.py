"""GRC backbones for MMDetection."""

from .grc_pvt import GRCPyramidVisionTransformer

__all__ = ['GRCPyramidVisionTransformer']
