"""Provide the mmcv ops that detectors with GRC use if mmcv has no compiled module ``mmcv._ext``.

mmcv-lite has all of ``mmcv.ops`` in Python and lacks only that module. :mod:`mmgrc.env.mmcv_ops.extension` replaces it
by the same functions with the same arguments, written with PyTorch and NumPy. On a GPU, torchvision computes NMS and
RoIAlign if it is installed. A compiled module always takes precedence.
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
    """Make ``mmcv.ops`` importable if mmcv has no compiled ops. With compiled ops, nothing changes.

    Compiled ops that fail to load, because they were compiled for another torch, are still an error.
    """
    # An imported module needs no search. If the parent package is missing, there are no submodules to look for.
    if _NAME in sys.modules or importlib.util.find_spec('mmcv') is None:
        return
    if importlib.util.find_spec(_NAME) is None:
        from . import extension

        sys.modules[_NAME] = extension


def ops_in_use(device: str = 'cpu') -> str:
    """Return whose ops ``mmcv.ops`` calls on a device: ``'compiled'``, ``'torchvision'`` or ``'pytorch'``."""
    from . import extension

    if sys.modules.get(_NAME) is not extension:
        return 'compiled'
    return 'torchvision' if extension.use_torchvision(torch.device(device)) else 'pytorch'


def missing_ops(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Find layers of mmcv whose op is not available, such as deformable convolutions.

    Args:
        model: A detector or a part of one.

    Yields:
        The name of each such layer in the model, and the layer. Nothing if mmcv's ops are compiled.
    """
    if ops_in_use() == 'compiled':
        return
    from .extension import PROVIDED

    for name, module in model.named_modules():
        package, _, source = type(module).__module__.rpartition('.')
        # Pure Python layers of mmcv.ops do not use the compiled module.
        if (
            package == 'mmcv.ops'
            and hasattr(sys.modules[f'mmcv.ops.{source}'], 'ext_module')
            and source not in PROVIDED
        ):
            yield name, module
