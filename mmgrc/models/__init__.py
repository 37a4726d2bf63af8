"""GRC attention on torch alone, and the backbones of MMDetection that have it.

The backbones are imported on first use, since they need MMDetection.
"""

from importlib import import_module

from .attention import GRCAttention, commit_caches
from .grc import GRC
from .options import GRCConfig

_BACKBONES = ('GRCPyramidVisionTransformer', 'GRCPyramidVisionTransformerV2', 'GRCSwinTransformer')
__all__ = ['GRC', 'GRCAttention', 'GRCConfig', 'commit_caches', *_BACKBONES]


def __getattr__(name: str) -> object:
    if name in _BACKBONES:
        return getattr(import_module('.backbones', __name__), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
