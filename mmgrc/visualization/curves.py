"""Plot losses, mAP and memory of a run over time."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from mmengine.config import Config

from .layers import number_layers, stage_style
from .text import write_plainly

__all__ = [
    'draw_losses',
    'draw_metrics',
    'draw_monitor',
    'find_logs',
    'metric_label',
    'pick_metrics',
    'plot_run',
    'read_monitor',
    'read_scalars',
    'validation_unit',
]


_HEADLINE = re.compile(r'(?:^|[/_])(?:mAP|AP|PQ)(?:_?50)?$')
"""Names of the metric that summarises an evaluator's metrics."""
_METRICS_SHOWN = 6
"""How many metrics to show of an evaluator without such a metric."""
_NO_METRICS = ('time', 'data_time', 'step', 'iter', 'epoch', 'memory')


def find_logs(work_dir: str | Path) -> list[Path]:
    """The logs of the trainings in a work dir, oldest first, including those before each resumption."""
    return sorted(Path(work_dir).glob('*/vis_data/scalars.json'))


def _records(log: Path) -> Iterator[dict]:
    """The records that MMEngine logged."""
    for line in log.read_text(encoding='utf-8').splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            # The incomplete last line of a run that was killed while writing.
            continue
        # With `log_processor.log_with_hierarchy` each name includes its loop.
        yield {key.removeprefix('train/').removeprefix('val/'): value for key, value in record.items()}


def _first_iteration(records: Iterable[dict]) -> float:
    """The first iteration that a run logged. Infinite if it did not train."""
    return next((record['iter'] for record in records if _is_training(record)), math.inf)


def read_scalars(work_dir: str | Path) -> tuple[dict[int, dict], dict[int, dict]]:
    """Read MMEngine's logs in a work dir, including the runs before each resumption.

    Args:
        work_dir: The work dir of a training.

    Returns:
        Training records by iteration, and validation records by the unit of :func:`validation_unit`. That is the epoch,
        or the iteration if the training went by iterations or logged its validations that way. From the first iteration
        that a run logged, its records replace those of earlier runs: it may have started anew.

    Raises:
        FileNotFoundError: There is no log.
    """
    training: dict[int, dict] = {}
    validations: list[dict] = []
    last = 0
    for log in find_logs(work_dir):
        records = list(_records(log))
        first = _first_iteration(records)
        training = {step: record for step, record in training.items() if step < first}
        training |= {record['iter']: record for record in records if _is_training(record)}
        validations = [record for record in validations if record['iter'] < first]
        validations += _place_validations(records, _read_schedule(log.with_name('config.py')), last)
        last = next((record['iter'] for record in reversed(records) if _is_training(record)), last)
    if not training:
        raise FileNotFoundError(f'there is no training log in {work_dir}: give the work dir of a training')
    key = 'epoch' if all('epoch' in record for record in validations) else 'iter'
    validation = {record[key]: record for record in validations}
    return dict(sorted(training.items())), dict(sorted(validation.items()))


def validation_unit(validation: Mapping[int, dict]) -> str:
    """The unit of the validations of :func:`read_scalars`: ``'epoch'`` or ``'iteration'``."""
    return 'iteration' if any('epoch' not in record for record in validation.values()) else 'epoch'


def _is_training(record: Mapping) -> bool:
    return 'loss' in record and 'iter' in record


def _is_validation(record: Mapping) -> bool:
    # Other records come from hooks. MMEngine logs `data_time` with each validation.
    return not _is_training(record) and any(key == 'data_time' or key.startswith('coco/') for key in record)


class _Schedule(NamedTuple):
    """Properties of a run that MMEngine's records lack."""

    by_iterations: bool
    """Whether the training loop goes by iterations, whatever the log looks like."""
    logs_epochs: bool
    """Whether the step of a validation record is an epoch."""
    interval: int
    """Epochs or iterations between validations."""
    end: int
    """Last iteration."""


def _read_schedule(path: Path) -> _Schedule | None:
    """The schedule in the config that MMEngine stores with a log. None if there is no readable config."""
    try:
        config = Config.fromfile(str(path), import_custom_modules=False)
        loop = config.get('train_cfg') or {}
        logger = (config.get('default_hooks') or {}).get('logger') or {}
        # MMEngine's own defaults.
        return _Schedule(
            'max_iters' in loop,
            logger.get('log_metric_by_epoch', True),
            int(loop.get('val_interval', 1000)),
            int(loop.get('max_iters', 0)),
        )
    except Exception:
        # A config is code and may raise anything.
        return None


def _place_validations(records: Iterable[dict], schedule: _Schedule | None, last: int) -> Iterator[dict]:
    """The validation records of a run, with ``iter``, and with ``epoch`` if they are logged by epoch.

    Args:
        records: All records of the run.
        schedule: Its schedule. None: infer it from the records.
        last: Last iteration that was logged before this run.
    """
    previous, epoch = 0, None
    for record in records:
        if _is_training(record):
            last, epoch = record['iter'], record.get('epoch')
        elif _is_validation(record):
            step = record['step']
            guess = _Schedule(step == 0, step < last or step == epoch, 0, 0)
            by_iterations, logs_epochs, interval, end = schedule or guess
            if not logs_epochs:
                yield {**record, 'iter': step}
            elif not by_iterations:
                yield {**record, 'iter': last, 'epoch': step}
            else:
                # MMEngine logs epoch 0, validates at multiples of the interval, and at the end.
                place = -(-max(last, previous + 1) // interval) * interval if interval else last
                previous = min(place, end) if end else place
                yield {**record, 'iter': previous}


def pick_metrics(validation: Mapping[int, dict]) -> list[str]:
    """The metrics that summarise validations: mAP, AP or PQ of each evaluator, or else its first metrics.

    Args:
        validation: Validation records of :func:`read_scalars`.
    """
    names = dict.fromkeys(
        key
        for record in validation.values()
        for key, value in record.items()
        if key not in _NO_METRICS and isinstance(value, int | float)
    )
    evaluators: dict[str, list[str]] = defaultdict(list)
    for name in names:
        # Class names may contain a slash, too.
        evaluators[name.split('/')[0] if '/' in name else ''].append(name)
    return [
        name
        for metrics in evaluators.values()
        for name in ([m for m in metrics if _HEADLINE.search(m)] or metrics[:_METRICS_SHOWN])
    ]


def metric_label(name: str) -> str:
    """A metric's name, without the name of the usual evaluator."""
    return name.removeprefix('coco/')


def read_monitor(work_dir: str | Path) -> dict[str, dict[str, dict[int, float]]]:
    """Read the records of :class:`~mmgrc.engine.GRCMonitorHook` in a work dir.

    Args:
        work_dir: The work dir of a training.

    Returns:
        For each quantity, such as ``'grc_sigma_lambda'``, and each layer, the values by iteration.
        ``'grc_skipped_steps'`` has the single layer ``''``. Empty if the hook did not run. The records of a run replace
        those of earlier ones as in :func:`read_scalars`.
    """
    logged: list[dict] = []
    for log in find_logs(work_dir):
        records = list(_records(log))
        first = _first_iteration(records)
        logged = [record for record in logged if record['step'] < first]
        logged += [record for record in records if any(key.startswith('grc_') for key in record)]
    series: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for record in logged:
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
        axis: The axes to draw on.
        training: Training records of :func:`read_scalars`.
    """
    names = [key for key in next(iter(training.values())) if key.startswith('loss')]
    for name, style in zip(names, ['-', '--', '-.', ':', (0, (3, 1, 1, 1)), (0, (5, 3))], strict=False):
        axis.plot(list(training), [record.get(name) for record in training.values()], linestyle=style, label=name)
    axis.set(xlabel='iteration', ylabel='loss', title='Loss')
    axis.set_ylim(bottom=0)
    _finish(axis)


def draw_metrics(axis: Axes, validation: Mapping[int, dict]) -> None:
    """Draw the metrics of the validations, usually mAP, over epochs or iterations.

    Args:
        axis: The axes to draw on.
        validation: Validation records of :func:`read_scalars`.
    """
    metrics = pick_metrics(validation)
    for name, marker in zip(metrics, cycle('osD^')):
        values = [record.get(name, math.nan) for record in validation.values()]
        axis.plot(list(validation), values, marker=marker, label=metric_label(name))
    axis.set(xlabel=validation_unit(validation), title='Validation')
    axis.set_ylabel('mAP' if all('mAP' in name for name in metrics) else 'metric')
    # Some evaluators use per cent. -1 means that a value could not be evaluated.
    if all(record.get(name, 0) <= 1 for record in validation.values() for name in metrics):
        axis.set_ylim(0, 1)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(axis)


def draw_monitor(axis: Axes, layers: Mapping[str, Mapping[int, float]], title: str) -> None:
    """Draw a quantity of each layer over the iterations, with one style per stage.

    Args:
        axis: The axes to draw on.
        layers: One entry of :func:`read_monitor`.
        title: The title of the plot.
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
    write_plainly(axis)


def plot_run(work_dir: str | Path, out: str | Path) -> None:
    """Plot the losses over the iterations and the mAP over the epochs, or over the iterations.

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
