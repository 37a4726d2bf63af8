"""GRC-attention ("Cached Transformers", arXiv 2312.12742) for MMDetection.

Importing the package checks the installed stack, provides mmcv's ops where they are not compiled, registers backbones
and hooks with MMEngine, lets torch load MMEngine's checkpoints safely, and makes ``mmgrc::`` a prefix of base configs.
"""

import sys

from .stack import check_stack
from .version import __version__

__all__ = ['__version__']

# `python -m mmgrc.check_env` reports what is wrong with the stack: it has to start where this package cannot.
if 'mmgrc.check_env' not in sys.orig_argv:
    check_stack()

    from . import engine, models  # noqa: F401
    from .checkpoint import allow_mmengine_checkpoints
    from .config import register_config_prefix

    allow_mmengine_checkpoints()
    register_config_prefix()
