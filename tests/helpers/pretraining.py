"""Skip tests of pre-training where mmpretrain is not installed or does not work."""

import pytest

from mmgrc.env.pretraining import PretrainingError, check_pretraining


def why_not():
    """Why mmpretrain cannot be used, or None."""
    try:
        check_pretraining()
    except PretrainingError as error:
        return str(error)
    return None


WHY_NOT = why_not()
MARKS = [pytest.mark.pretrain, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]
"""For `pytestmark` of a module or class."""


def needs_mmpretrain(test):
    """Mark a test."""
    for mark in MARKS:
        test = mark(test)
    return test
