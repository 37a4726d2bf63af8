"""Faster operations that compute the same numbers. On a CPU the layers use them instead of PyTorch's own.

Each module names its plain form. :func:`use_ops` and the environment variable ``MMGRC_OPS`` choose between the two.
"""

from .mode import MODES, describe_ops, is_fast, ops_mode, use_ops

__all__ = ['MODES', 'describe_ops', 'is_fast', 'ops_mode', 'use_ops']
