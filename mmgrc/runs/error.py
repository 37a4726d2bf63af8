"""The error for invalid input, and how its messages name several values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

__all__ = ['InputError', 'as_input_error', 'first_few']


class InputError(Exception):
    """Invalid input of a run. The message names it and says what to do."""


@contextmanager
def as_input_error(message: str) -> Iterator[None]:
    """Report an error of third-party code, such as a constructor of MMDetection or a plug-in, as invalid input.

    Args:
        message: What failed. Type and text of the error follow it.

    Raises:
        InputError: The code raised an error, of whatever type.
    """
    try:
        yield
    except Exception as error:
        raise InputError(f'{message}: {type(error).__name__}: {error}') from error


def first_few(values: Sequence, shown: int = 5) -> str:
    """The first values as a string, with an ellipsis if there are more."""
    return ', '.join(map(str, values[:shown])) + (', ...' if len(values) > shown else '')
