"""Plot a study: a point for each seed, and each mean with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from mmgrc.visualization.text import write_plainly

from .statistics import LEVEL, difference, estimate
from .table import Study

__all__ = ['plot_study']


def plot_study(study: Study, values: Mapping[str, Mapping[str, Mapping[int, float]]], out: str | Path) -> None:
    """Draw the metrics of each arm, and below them the differences from the reference, paired by seed.

    Args:
        study: The table.
        values: Values by metric, arm and seed.
        out: Image file to write.
    """
    arms = list(next(iter(values.values())))
    compared = [arm for arm in arms if study.reference in arms and arm != study.reference]
    rows = 2 if compared else 1
    figure, axes = plt.subplots(
        rows,
        len(values),
        figsize=(max(3.2, 0.9 * len(arms) + 1.5) * len(values), 3.2 * rows),
        squeeze=False,
        layout='constrained',
    )
    for column, (metric, by_arm) in enumerate(values.items()):
        _draw(axes[0, column], {arm: [by_seed[s] for s in sorted(by_seed)] for arm, by_seed in by_arm.items()})
        axes[0, column].set_title(metric.split('/')[-1], fontsize=10)
        if compared:
            pairs = {arm: difference(by_arm[arm], by_arm[study.reference]) for arm in compared}
            _draw(axes[1, column], {arm: values for arm, values in pairs.items() if values})
            axes[1, column].axhline(0, color='0.4', linewidth=0.8, linestyle=':')
            axes[1, column].set_title(f'difference from {study.reference}, by seed', fontsize=10)
    figure.supxlabel(f'bars: mean and its {LEVEL:.0%} interval', fontsize=8)
    write_plainly(figure)
    figure.savefig(out, dpi=130)
    plt.close(figure)


def _draw(axis: Axes, by_arm: Mapping[str, Sequence[float]]) -> None:
    """Draw a column for each arm."""
    for place, values in enumerate(by_arm.values()):
        # Seeds are drawn side by side, in the same order in every column, so that equal values do not overlap.
        offsets = np.linspace(-0.25, 0, len(values)) if len(values) > 1 else [-0.12]
        axis.plot(place + np.asarray(offsets), values, 'o', markersize=3.5, color='C0', alpha=0.6)
        mean = estimate(values)
        axis.errorbar(place + 0.18, mean.mean, yerr=np.nan_to_num(mean.half_width), fmt='_', color='C1', capsize=4)
    axis.set_xticks(range(len(by_arm)), list(by_arm), rotation=20, ha='right', fontsize=8)
    axis.set_xlim(-0.6, len(by_arm) - 0.4)
    axis.grid(alpha=0.3, axis='y')
