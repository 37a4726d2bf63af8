"""The error for invalid input, and how its messages name several values."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ['InputError', 'first_few']

_SHOWN = 5


class InputError(Exception):
    """Invalid input of a run. The message names it and says what to do."""


def first_few(values: Sequence, shown: int = _SHOWN) -> str:
    """The first values as a string, with an ellipsis if there are more."""
    return ', '.join(map(str, values[:shown])) + (', ...' if len(values) > shown else '')
