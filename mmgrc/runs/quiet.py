"""Trials before a run, without the log of what they try."""

import contextlib
import io
import logging
from collections.abc import Iterator

from mmengine.logging import MMLogger

__all__ = ['quiet']


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence MMEngine's log below errors, and what is printed: a trial says nothing of the run."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
