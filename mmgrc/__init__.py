"""GRC-attention ("Cached Transformers", arXiv 2312.12742) for PyTorch and MMDetection.

The public names need torch alone. If MMDetection is installed, importing the package also checks the installed
versions, provides mmcv's ops if they are not compiled, registers backbones, hooks and a metric with MMEngine, lets
torch load MMEngine's checkpoints safely, and makes ``mmgrc::`` a prefix of base configs.
"""

import sys
import warnings
from importlib.util import find_spec

from .version import __version__

__all__ = ['GRC', 'GRCAttention', 'GRCConfig', '__version__', 'commit_caches']

# `python -m mmgrc.check_env` reports missing packages, so it has to start without them.
if 'mmgrc.check_env' not in sys.orig_argv:
    from .models import GRC, GRCAttention, GRCConfig, commit_caches

    if find_spec('mmdet') is not None:
        from .env.versions import StackError, check_stack

        try:
            check_stack()
        except StackError as error:
            # `mmgrc.runs` and `mmgrc.models.backbones` raise the error itself.
            warnings.warn(f'the GRC backbones are not registered with MMDetection: {error}', stacklevel=2)
        else:
            from . import engine, evaluation  # noqa: F401
            from .models import backbones  # noqa: F401
            from .runs.checkpoint import allow_mmengine_checkpoints
            from .runs.config import register_config_prefix

            allow_mmengine_checkpoints()
            register_config_prefix()
