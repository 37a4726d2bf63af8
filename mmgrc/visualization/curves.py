"""Losses, mAP and memory of a run over time."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .layers import number_layers, stage_style

__all__ = ['draw_losses', 'draw_metrics', 'draw_monitor', 'plot_run', 'read_monitor', 'read_scalars']


def _records(work_dir: str | Path) -> Iterator[dict]:
    """What MMEngine logged in a work dir, oldest first, the runs before each resumption too."""
    for file in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in file.read_text().splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                # The last line of a run that was killed while it wrote.
                continue


def read_scalars(work_dir: str | Path) -> tuple[dict[int, dict], dict[int, dict]]:
    """Read what MMEngine logged in a work dir, the runs before each resumption too.

    Args:
        work_dir: The work dir of a training.

    Returns:
        Training records by iteration and validation records by epoch. Where a resumed run repeats a step, its record
        counts.

    Raises:
        FileNotFoundError: There is no log.
    """
    training, validation = {}, {}
    for record in _records(work_dir):
        if 'loss' in record:
            training[record['iter']] = record
        elif any(key.startswith('coco/') for key in record):
            validation[record['step']] = record
    if not training:
        raise FileNotFoundError(f'there is no training log in {work_dir}: give the work dir of a training')
    return dict(sorted(training.items())), dict(sorted(validation.items()))


def read_monitor(work_dir: str | Path) -> dict[str, dict[str, dict[int, float]]]:
    """Read what :class:`~mmgrc.engine.GRCMonitorHook` logged in a work dir.

    Args:
        work_dir: The work dir of a training.

    Returns:
        For each quantity, as ``'grc_sigma_lambda'``, and each layer, the values by iteration; ``'grc_skipped_steps'``
        has the one layer ``''``. Empty where the hook did not run.
    """
    series: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for record in _records(work_dir):
        for key, value in record.items():
            if key.startswith('grc_'):
                quantity, _, layer = key.partition('/')
                series[quantity][layer][record['step']] = value
    return {
        quantity: {layer: dict(sorted(values.items())) for layer, values in layers.items()}
        for quantity, layers in series.items()
    }


def draw_losses(axis: Axes, training: Mapping[int, dict]) -> None:
    """Draw the losses over the iterations.

    Args:
        axis: Where to draw.
        training: Training records of :func:`read_scalars`.
    """
    names = [key for key in next(iter(training.values())) if key.startswith('loss')]
    for name, style in zip(names, ['-', '--', '-.', ':', (0, (3, 1, 1, 1)), (0, (5, 3))], strict=False):
        axis.plot(list(training), [record.get(name) for record in training.values()], linestyle=style, label=name)
    axis.set(xlabel='iteration', ylabel='loss', title='Loss')
    axis.set_ylim(bottom=0)
    _finish(axis)


def draw_metrics(axis: Axes, validation: Mapping[int, dict]) -> None:
    """Draw the mAP over the epochs.

    Args:
        axis: Where to draw.
        validation: Validation records of :func:`read_scalars`.
    """
    metrics = [key for key in next(iter(validation.values()), {}) if key.endswith(('_mAP', '_mAP_50'))]
    for name, marker in zip(metrics, 'osD^', strict=False):
        values = [record.get(name) for record in validation.values()]
        axis.plot(list(validation), values, marker=marker, label=name.removeprefix('coco/'))
    axis.set(xlabel='epoch', ylabel='mAP', title='Validation', ylim=(0, 1))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(axis)


def draw_monitor(axis: Axes, layers: Mapping[str, Mapping[int, float]], title: str) -> None:
    """Draw a quantity of each layer over the iterations, alike within a stage.

    Args:
        axis: Where to draw.
        layers: One entry of :func:`read_monitor`.
        title: What it is.
    """
    labelled = set()
    for name, layer in number_layers(layers).items():
        label = None if layer.stage in labelled else f'stage {layer.stage}'
        labelled.add(layer.stage)
        axis.plot(list(layers[name]), list(layers[name].values()), label=label, **stage_style(layer.stage))
    axis.set(xlabel='iteration', title=title)
    _finish(axis)


def _finish(axis: Axes) -> None:
    axis.grid(alpha=0.3)
    if axis.lines:
        axis.legend(fontsize=8)


def plot_run(work_dir: str | Path, out: str | Path) -> None:
    """Plot the losses over the iterations and the mAP over the epochs.

    Args:
        work_dir: The work dir of a training.
        out: Picture to write.

    Raises:
        FileNotFoundError: There is no log.
    """
    training, validation = read_scalars(work_dir)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    draw_losses(left, training)
    draw_metrics(right, validation)
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    plt.close(figure)
