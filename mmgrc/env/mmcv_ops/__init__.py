"""The ops of mmcv that detectors with GRC use, where mmcv comes without its compiled module ``mmcv._ext``.

mmcv-lite has all of ``mmcv.ops`` in Python and lacks only that module. :mod:`mmgrc.env.mmcv_ops.extension` replaces it:
the same functions with the same arguments, in PyTorch's and NumPy's own operations. On a GPU, torchvision does NMS and
RoIAlign if it is installed. A compiled module always comes first.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator

import torch
from torch import nn

__all__ = ['missing_ops', 'ops_in_use', 'provide_ops']

_NAME = 'mmcv._ext'


def provide_ops() -> None:
    """Let ``mmcv.ops`` be imported where mmcv has no compiled ops; nothing changes where it has them.

    Ops that are compiled but do not load, since they were compiled for another torch, stay an error.
    """
    # What is imported already needs no search, and a parent package that is missing has no submodules.
    if _NAME in sys.modules or importlib.util.find_spec('mmcv') is None:
        return
    if importlib.util.find_spec(_NAME) is None:
        from . import extension

        sys.modules[_NAME] = extension


def ops_in_use(device: str = 'cpu') -> str:
    """Whose ops ``mmcv.ops`` calls on a device: ``'compiled'``, ``'torchvision'`` or ``'pytorch'``."""
    from . import extension

    if sys.modules.get(_NAME) is not extension:
        return 'compiled'
    return 'torchvision' if extension.use_torchvision(torch.device(device)) else 'pytorch'


def missing_ops(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers of mmcv whose op is not there, such as deformable convolutions.

    Args:
        model: A detector or a part of one.

    Yields:
        Their names in the model and the layers; none where mmcv's ops are compiled.
    """
    if ops_in_use() == 'compiled':
        return
    from .extension import PROVIDED

    for name, module in model.named_modules():
        package, _, source = type(module).__module__.rpartition('.')
        # Layers of mmcv.ops that are Python alone do not look for the compiled module.
        if (
            package == 'mmcv.ops'
            and hasattr(sys.modules[f'mmcv.ops.{source}'], 'ext_module')
            and source not in PROVIDED
        ):
            yield name, module
