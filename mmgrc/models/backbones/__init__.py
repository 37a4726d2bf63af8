"""The GRC backbones, registered with MMEngine. They need MMDetection. Problems with it are reported here."""

from mmgrc.env.versions import check_stack

check_stack()

from .cached import CachedBackbone  # noqa: E402
from .pvt import GRCPyramidVisionTransformer, GRCPyramidVisionTransformerV2  # noqa: E402
from .swin import GRCSwinTransformer  # noqa: E402

__all__ = ['CachedBackbone', 'GRCPyramidVisionTransformer', 'GRCPyramidVisionTransformerV2', 'GRCSwinTransformer']
