"""Make torchvision importable where its compiled operators do not fit the installed torch.

mmpretrain imports torchvision for its transforms, and MMDetection imports mmpretrain wherever it is installed. A
torchvision that was compiled for another build of torch, such as one for CUDA beside a torch for CPUs, cannot be
imported: it describes operators to torch that were not loaded. So this module declares them, without an implementation.
torchvision itself then refuses to compute with them, and says why.
"""

from __future__ import annotations

import re
from importlib.util import find_spec

import torch

__all__ = ['provide_torchvision']

_MISSING_OPERATOR = re.compile(r'operator torchvision::(\w+) does not exist')
_SIGNATURE = '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'
_declared: dict[str, torch.library.Library] = {}
"""Operators exist as long as these objects."""


def provide_torchvision() -> bool:
    """Import torchvision, if it is installed, and declare the operators without which it cannot be imported.

    Returns:
        Whether its compiled operators fit the installed torch. True if it is not installed.

    Raises:
        RuntimeError: It cannot be imported for another reason.
    """
    if find_spec('torchvision') is None:
        return True
    while True:
        try:
            import torchvision  # noqa: F401
        except RuntimeError as error:
            missing = _MISSING_OPERATOR.search(str(error))
            if missing is None or missing[1] in _declared:
                raise
            library = _declared[missing[1]] = torch.library.Library('torchvision', 'FRAGMENT')
            library.define(missing[1] + _SIGNATURE)
        else:
            return not _declared
