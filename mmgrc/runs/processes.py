"""Processes that end with the process that started them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

__all__ = ['child_processes', 'end_forks_with_this_process', 'end_with_parent']

_PR_SET_PDEATHSIG = 1


def child_processes(pid: int) -> list[int]:
    """List the processes that a process has started and that are alive, on Linux. Elsewhere, none are found."""
    found = []
    for folder in Path('/proc').glob('[0-9]*'):
        # It may have ended since.
        with contextlib.suppress(OSError):
            # The name of the program is in parentheses, and may contain any character.
            state, parent = (folder / 'stat').read_text(errors='replace').rpartition(')')[2].split()[:2]
            if int(parent) == pid and state != 'Z':
                found.append(int(folder.name))
    return found


def end_with_parent() -> None:
    """On Linux, have the kernel kill this process when its parent ends, even by ``kill -9``. Elsewhere, do nothing."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end_forks_with_this_process() -> None:
    """Let each process that is forked from now on, such as a worker of a data loader, end with this one.

    If a training is killed, by the user or because memory runs out, its workers would otherwise wait forever to hand
    over their batches, and keep their memory.
    """
    # Windows forks no processes.
    if hasattr(os, 'register_at_fork'):
        os.register_at_fork(after_in_child=end_with_parent)
