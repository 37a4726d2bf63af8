"""The switch between plain and fast operations, and the choice for this processor."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

__all__ = ['MODES', 'VARIABLE', 'describe_ops', 'has_onednn', 'is_fast', 'onednn_is_faster', 'ops_mode', 'use_ops']

VARIABLE = 'MMGRC_OPS'
MODES = {
    'plain': "PyTorch's own layers and the code of mmgrc/models/grc.py",
    'fast': 'the same numbers faster, with the matrix products that suit the processor',
    'fast-mkl': 'fast, with the matrix products of MKL',
    'fast-onednn': 'fast, with the matrix products of oneDNN; maps that are quick to compute are recomputed',
}


def _is_held_back(processor: str) -> bool:
    """Whether MKL reaches only half the speed of the processor, since on an AMD it does not use AVX-512.

    A Zen 5, family 26, computes 512 bits at once. A Zen 4 computes them as two halves, so AVX2 is as fast there. A
    product of 2048 x 2048 in float32 on two threads: 230 GFLOP/s by MKL and 500 by oneDNN on a Zen 5; 148 and 211 on a
    Zen 4, where training steps take longer with oneDNN; 153 and 155 on a Sapphire Rapids; 161 and 144 on a Zen 3.

    Args:
        processor: The description of the processor by Linux or Windows, with vendor and family.
    """
    family = re.search(r'family\s*:?\s*(\d+)', processor, re.IGNORECASE)
    is_zen_5 = 'AuthenticAMD' in processor and family is not None and int(family[1]) >= 26
    return is_zen_5 and torch.backends.cpu.get_cpu_capability() == 'AVX512'


def _describe_processor() -> str:
    try:
        return Path('/proc/cpuinfo').read_text(encoding='utf-8')
    except OSError:
        return platform.processor()


def _checked(mode: str, source: str) -> str:
    if mode not in MODES:
        raise ValueError(f'{source}={mode!r}: allowed are {", ".join(MODES)}')
    return mode


# Read once, so that all processes of a run make the same choice, and a resumed run computes like the interrupted one.
_mode = _checked(os.environ.get(VARIABLE) or 'fast', VARIABLE)
_HELD_BACK = _is_held_back(_describe_processor())


def ops_mode() -> str:
    """The active mode, a key of :data:`MODES`."""
    return _mode


@contextmanager
def use_ops(mode: str) -> Iterator[None]:
    """Use another mode. Run the backward pass inside the context too: it may recompute parts of the forward pass.

    Args:
        mode: A key of :data:`MODES`.

    Raises:
        ValueError: There is no such mode.
    """
    global _mode
    before, _mode = _mode, _checked(mode, 'use_ops: mode')
    try:
        yield
    finally:
        _mode = before


def is_fast() -> bool:
    """Whether fast operations are used. The plain mode and compiled, traced or exported graphs do not use them."""
    return _mode != 'plain' and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def has_onednn(x: Tensor, *dtypes: torch.dtype) -> bool:
    """Whether fast operations compute with ``x`` on a CPU that has oneDNN, in one of the precisions ``dtypes``."""
    return is_fast() and x.device.type == 'cpu' and x.dtype in dtypes and torch.backends.mkldnn.is_available()


def onednn_is_faster() -> bool:
    """Whether matrix products are faster with oneDNN than with MKL.

    In that case a product also takes less time than allocating memory for its result. The backward pass recomputes it
    instead of storing it.
    """
    return _mode == 'fast-onednn' or (_mode == 'fast' and _HELD_BACK)


def describe_ops() -> str:
    """Describe the active mode and the choice for this processor."""
    kernel = '' if _mode == 'plain' else f', matrix products of {"oneDNN" if onednn_is_faster() else "MKL"}'
    return f'{_mode}{kernel} ({VARIABLE})'
