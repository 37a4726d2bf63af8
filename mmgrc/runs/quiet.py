"""Trials before a run, without their log."""

import contextlib
import io
import logging
from collections.abc import Iterator

from mmengine.logging import MMLogger

__all__ = ['quiet']


@contextlib.contextmanager
def quiet(least: int = logging.ERROR) -> Iterator[None]:
    """Silence printed output and MMEngine's log below a level, since a trial says nothing about the run."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(least)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
