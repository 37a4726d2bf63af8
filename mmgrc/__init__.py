"""GRC-attention ("Cached Transformers", arXiv 2312.12742) for MMDetection.

Importing the package checks the installed stack, registers backbones and hooks with MMEngine, lets torch load MMEngine's
checkpoints safely, and makes ``mmgrc::`` a prefix of base configs.
"""

from .stack import check_stack

check_stack()

__all__ = ['__version__']

from . import engine, models  # noqa: E402, F401
from .checkpoint import allow_mmengine_checkpoints  # noqa: E402
from .config import register_config_prefix  # noqa: E402
from .version import __version__  # noqa: E402

allow_mmengine_checkpoints()
register_config_prefix()
