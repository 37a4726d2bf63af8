"""Processes that end with the process that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

__all__ = ['end_forks_with_this_process', 'end_with_parent']

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """On Linux, have the kernel kill this process when its parent ends, even by ``kill -9``. Elsewhere, do nothing."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end_forks_with_this_process() -> None:
    """Do so for each process that is forked from now on, such as the workers of a data loader.

    A loader's workers wait without end to hand over their batches if the training is killed, by the user or for want of
    memory, and keep their own memory.
    """
    # Windows forks no processes.
    if hasattr(os, 'register_at_fork'):
        os.register_at_fork(after_in_child=end_with_parent)
