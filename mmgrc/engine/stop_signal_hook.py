"""Stop a run on request: on a signal, save a checkpoint and end."""

from __future__ import annotations

import os
import signal
from types import FrameType

import torch
from mmengine.device import get_device
from mmengine.dist import all_reduce, barrier
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from .accumulation import pending_batches
from .atomic_checkpoint_hook import AtomicCheckpointHook
from .exact_resume_hook import ExactResumeHook

__all__ = ['CHECKPOINT_NAME', 'StopSignalHook', 'TrainingStopped']

CHECKPOINT_NAME = 'stopped.pth'
# Windows has no SIGUSR1. SIGBREAK is its Ctrl-Break.
_DEFAULT_SIGNAL = 'SIGUSR1' if hasattr(signal, 'SIGUSR1') else 'SIGBREAK'


# Signals that forks of this process ignore. A handler of forks cannot be removed, so each is registered once.
_ignored_in_forks: set[signal.Signals] = set()


def _ignore_in_forks(number: signal.Signals) -> None:
    """Have the workers of data loaders survive a signal to all processes, as Slurm and ``kill`` of a group send it.

    A worker that dies ends the training before it can save its checkpoint.
    """
    # Windows forks no processes.
    if number not in _ignored_in_forks and hasattr(os, 'register_at_fork'):
        _ignored_in_forks.add(number)
        os.register_at_fork(after_in_child=lambda: signal.signal(number, signal.SIG_IGN))


class TrainingStopped(Exception):  # noqa: N818
    """Training ended on request, before its last epoch, with a checkpoint."""


@HOOKS.register_module()
class StopSignalHook(Hook):
    """On a signal, save a checkpoint after the current iteration and end the run. ``--resume`` continues from there.

    Batch systems send the signal before they end a job, see ``tools/sbatch_train.sh``. It may reach one rank or all.
    The ranks agree at each iteration, by exchanging one number. Forked workers of data loaders ignore the signal.

    With gradient accumulation (``accumulative_counts``), the run first continues until the accumulated gradients are
    applied, since a checkpoint does not contain them.

    Args:
        name: Name of the signal. None: SIGUSR1, or on Windows SIGBREAK.

    Raises:
        ValueError: There is no such signal.
    """

    # After everything else in an iteration.
    priority = 'LOWEST'

    def __init__(self, name: str | None = None) -> None:
        name = _DEFAULT_SIGNAL if name is None else name
        if name not in signal.Signals.__members__:
            raise ValueError(f'StopSignalHook: name={name!r} is not a signal; give a name such as {_DEFAULT_SIGNAL}')
        self.signal = signal.Signals[name]
        _ignore_in_forks(self.signal)
        self._asked = False
        self._previous: object = None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def before_train(self, runner: Runner) -> None:
        """Install the signal handler."""
        self._previous = signal.signal(self.signal, self._ask)

    def after_train(self, runner: Runner) -> None:
        """Restore the previous signal handler."""
        signal.signal(self.signal, self._previous or signal.SIG_DFL)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None
    ) -> None:
        """Stop on all ranks if any of them received the signal, and no gradients are waiting to be applied.

        Raises:
            TrainingStopped: The checkpoint is written.
        """
        asked = torch.tensor(float(self._asked), device=get_device())
        all_reduce(asked, 'max')
        # Which gradients are pending is the same on all ranks.
        if not asked or pending_batches(runner.optim_wrapper):
            return
        for hook in runner.hooks:
            if isinstance(hook, ExactResumeHook):
                hook.collect(runner, runner.iter + 1)
        hook = next((hook for hook in runner.hooks if isinstance(hook, AtomicCheckpointHook)), None)
        if hook is None:
            raise TrainingStopped(
                f'{self.signal.name}: stopped without a checkpoint, since there is no AtomicCheckpointHook'
            )
        path = hook.save_now(runner, CHECKPOINT_NAME)
        # A launcher may end the other ranks when the first one exits.
        barrier()
        raise TrainingStopped(
            f'{self.signal.name}: stopped after iteration {runner.iter + 1}; saved to {path}. Continue with --resume'
        )
