"""Means with their intervals, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

__all__ = ['LEVEL', 'Estimate', 'difference', 'estimate']

LEVEL = 0.95
"""Confidence level of the intervals."""


class Estimate(NamedTuple):
    """The mean of a sample and its uncertainty."""

    count: int
    mean: float
    deviation: float
    """Standard deviation of the values, with n - 1. NaN for one value."""
    half_width: float
    """Half the width of the mean's interval by Student's t, ``mean ± half_width``. NaN for one value."""


def estimate(values: Sequence[float]) -> Estimate:
    """Compute the mean, the standard deviation and the interval of the mean at :data:`LEVEL`.

    Args:
        values: At least one value.
    """
    count = len(values)
    if count < 2:
        return Estimate(count, float(values[0]), float('nan'), float('nan'))
    deviation = float(np.std(values, ddof=1))
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, count - 1))
    return Estimate(count, float(np.mean(values)), deviation, quantile * deviation / count**0.5)


def difference(values: Mapping[int, float], reference: Mapping[int, float]) -> list[float]:
    """Subtract the reference seed by seed, for the seeds that both have.

    Args:
        values: Values by seed.
        reference: The reference's values by seed.
    """
    return [values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())]
