"""The error of input with which nothing can be run, and how its messages name several values."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ['InputError', 'first_few']

_SHOWN = 5


class InputError(Exception):
    """Input with which a run cannot work. The message names it and says what to do."""


def first_few(values: Sequence, shown: int = _SHOWN) -> str:
    """The first values as a string, with an ellipsis where there are more."""
    return ', '.join(map(str, values[:shown])) + (', ...' if len(values) > shown else '')
