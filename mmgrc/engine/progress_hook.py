"""One line on the terminal that says how far a training is."""

from __future__ import annotations

import logging
import sys
import time
from datetime import timedelta

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from rich.console import Console
from rich.text import Text

__all__ = ['ProgressHook', 'erase_progress']

_BAR = 12
"""Width of the bar, in characters."""
# The cursor stays at the start of the line.
_ERASE = '\r\x1b[K'


def erase_progress() -> None:
    """Erase the line of :class:`ProgressHook`, if standard output is a terminal."""
    if sys.stdout.isatty():
        sys.stdout.write(_ERASE)
        sys.stdout.flush()


class _Eraser(logging.Handler):
    """Erases the line before the other handlers of a logger write theirs."""

    def emit(self, record: logging.LogRecord) -> None:
        erase_progress()


@HOOKS.register_module()
class ProgressHook(Hook):
    """Show epoch, iteration, loss and the time left in one line below MMEngine's log.

    It is shown by the first rank only, and only if standard output is a terminal. Log lines stay as they are, on the
    terminal and in files.

    Args:
        interval: Least time between two updates, in seconds.

    Raises:
        ValueError: ``interval`` is not a number from 0 up.
    """

    # After the logger's line of the same iteration.
    priority = 'LOWEST'

    def __init__(self, interval: float = 0.1) -> None:
        if not isinstance(interval, int | float) or isinstance(interval, bool) or not interval >= 0:
            raise ValueError(f'ProgressHook: interval={interval!r}: give a number of seconds from 0 up')
        self.interval = interval
        self._console: Console | None = None
        self._eraser = _Eraser()
        self._last = 0.0

    def before_train(self, runner: Runner) -> None:
        """Find out whether there is a terminal to write to."""
        console = Console(file=sys.stdout)
        if is_main_process() and sys.stdout.isatty() and not console.is_dumb_terminal:
            self._console = console
            runner.logger.handlers.insert(0, self._eraser)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: dict | None = None
    ) -> None:
        """Write the line."""
        if self._console is None or time.monotonic() - self._last < self.interval:
            return
        self._last = time.monotonic()
        # A line that fills the terminal would move the cursor to the next one.
        text = _describe(runner, outputs or {})
        text.truncate(self._console.width - 1)
        erase_progress()
        self._console.print(text, end='\r', soft_wrap=True, highlight=False)
        sys.stdout.flush()

    def before_val(self, runner: Runner) -> None:
        """Erase the line, since evaluators print."""
        if self._console is not None:
            erase_progress()

    def after_train(self, runner: Runner) -> None:
        """Erase the line, for the last time."""
        if self._console is not None:
            erase_progress()
            runner.logger.removeHandler(self._eraser)
            self._console = None


def _describe(runner: Runner, outputs: dict) -> Text:
    done, total = runner.iter + 1, runner.max_iters
    parts = []
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        length = len(runner.train_dataloader)
        parts.append(f'epoch {runner.epoch + 1}/{runner.max_epochs}')
        parts.append(f'iter {runner.iter % length + 1}/{length}')
    else:
        parts.append(f'iter {done}/{total}')
    if 'loss' in outputs:
        parts.append(f'loss {float(outputs["loss"]):.4f}')
    # IterTimerHook stores it.
    seconds = runner.message_hub.runtime_info.get('eta')
    if seconds is not None:
        parts.append(f'left {timedelta(seconds=int(seconds))}')
    filled = _BAR * done // max(total, 1)
    return Text.assemble(('━' * filled, 'green'), ('━' * (_BAR - filled), 'dim'), ' ', '  '.join(parts))
