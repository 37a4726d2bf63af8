"""Summarise the runs of a study: a CSV file, tables in Markdown, and a plot."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mmgrc.engine.files import write_atomically

from .plot import plot_study
from .statistics import LEVEL, difference, estimate
from .table import Study
from .training import Result, check_definition, read_result

__all__ = ['write_csv', 'write_summary']


def _read(study: Study, work_dir: str | Path) -> dict[tuple[str, int], Result]:
    """Read the results by arm and seed, in the order of the table."""
    runs = {(run.arm.name, run.seed): run for run in study.runs(work_dir, ranks=None)}
    for run in runs.values():
        # Not its variables: a summary may be written on a machine with other folders.
        check_definition(run, ('config', 'cfg_options', 'seed'))
    return {
        (arm.name, seed): read_result(runs[arm.name, seed], study.metrics) for arm in study.arms for seed in study.seeds
    }


def write_csv(study: Study, work_dir: str | Path) -> Path:
    """Write ``runs.csv`` with a row for each run, including runs without a result.

    Args:
        study: The table.
        work_dir: Folder of the study.

    Returns:
        Path of the file.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    best = [f'{metric}_best' for metric in study.metrics]
    columns = ['steps_per_second', 'peak_memory_mib', 'wall_time_s', 'message']
    writer.writerow(['arm', 'seed', 'status', *study.metrics, *best, *columns])
    for (arm, seed), result in _read(study, work_dir).items():
        values = [values.get(metric, '') for values in (result.final, result.best) for metric in study.metrics]
        measured = (result.steps_per_second, result.peak_memory, result.wall_time)
        rounded = ['' if value is None else f'{value:.4g}' for value in measured]
        writer.writerow([arm, seed, result.status, *values, *rounded, result.message])
    path = Path(work_dir) / 'runs.csv'
    write_atomically(path, text.getvalue().encode())
    return path


def write_summary(study: Study, work_dir: str | Path) -> str | None:
    """Write ``runs.csv`` of all runs, and the tables ``summary.md`` and the plot ``summary.png`` of the finished ones.

    Args:
        study: The table.
        work_dir: Folder of the study.

    Returns:
        The text of ``summary.md``, or None if no run is finished.

    Raises:
        InputError: A run's folder was made with other options.
    """
    write_csv(study, work_dir)
    results = _read(study, work_dir)
    finished = {key: result for key, result in results.items() if result.status == 'finished'}
    if not finished:
        return None
    text = '\n'.join(_lines(study, results, finished))
    write_atomically(Path(work_dir) / 'summary.md', text.encode())
    plot_study(study, _by_seed(study, finished, 'final'), Path(work_dir) / 'summary.png')
    return text


def _by_seed(
    study: Study, finished: Mapping[tuple[str, int], Result], which: str
) -> dict[str, dict[str, dict[int, float]]]:
    """Group the values by metric, arm and seed. Arms without a finished run are omitted."""
    values: dict[str, dict[str, dict[int, float]]] = {metric: defaultdict(dict) for metric in study.metrics}
    for (arm, seed), result in finished.items():
        for metric in study.metrics:
            values[metric][arm][seed] = getattr(result, which)[metric]
    return values


def _lines(
    study: Study, results: Mapping[tuple[str, int], Result], finished: Mapping[tuple[str, int], Result]
) -> Iterable[str]:
    yield f'{study.path}: {len(finished)} of {len(results)} runs are finished.'
    for which, title in (('final', 'Last validation'), ('best', 'Best validation')):
        yield from ('', f'{title}: mean ± standard deviation', '')
        yield from _table(*_metric_rows(study, _by_seed(study, finished, which)))
    yield from ('', 'Mean cost of a run', '')
    yield from _table(*_cost_rows(study, finished))
    if study.reference is not None:
        yield ''
        yield (
            f'Differences from {study.reference} are paired by seed, with the {LEVEL:.0%} interval of their mean by '
            "Student's t."
        )
    missing = [f'{arm}, seed {seed} ({r.status})' for (arm, seed), r in results.items() if r.status != 'finished']
    if missing:
        yield from ('', f'Not in the tables: {"; ".join(missing)}.')
    noted = [f'{arm}, seed {seed} ({r.message})' for (arm, seed), r in finished.items() if r.message]
    if noted:
        yield from ('', f'Counted with AP 0: {"; ".join(noted)}.')
    yield ''


def _metric_rows(
    study: Study, values: Mapping[str, Mapping[str, Mapping[int, float]]]
) -> tuple[list[str], list[list[str]]]:
    head = ['arm', 'runs']
    for metric in study.metrics:
        head.append(metric.split('/')[-1])
        if study.reference is not None:
            head.append(f'difference from {study.reference}')
    rows = []
    for arm in next(iter(values.values())):
        row = [arm, str(len(values[study.metrics[0]][arm]))]
        for metric in study.metrics:
            mean = estimate(list(values[metric][arm].values()))
            row.append(_number(mean.mean, '.3f', mean.deviation))
            if study.reference is not None:
                row.append(_difference_text(values[metric], arm, study.reference))
        rows.append(row)
    return head, rows


def _number(mean: float, form: str, spread: float) -> str:
    return f'{mean:{form}}' + ('' if np.isnan(spread) else f' ± {spread:.3f}')


def _difference_text(values: Mapping[str, Mapping[int, float]], arm: str, reference: str) -> str:
    pairs = difference(values[arm], values.get(reference, {}))
    if arm == reference or not pairs:
        return ''
    mean = estimate(pairs)
    text = f'{mean.mean:+.3f}'
    if not np.isnan(mean.half_width):
        text += f' [{mean.mean - mean.half_width:+.3f}, {mean.mean + mean.half_width:+.3f}]'
    # Some runs may have no partner.
    return text if mean.count == len(values[arm]) else f'{text} of {mean.count}'


def _cost_rows(study: Study, finished: Mapping[tuple[str, int], Result]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for arm in study.arms:
        results = [result for (name, _), result in finished.items() if name == arm.name]
        if results:
            fields = ('steps_per_second', 'peak_memory', 'wall_time')
            columns = [[v for r in results if (v := getattr(r, field)) is not None] for field in fields]
            rows.append([arm.name, *(f'{np.mean(column):.4g}' if column else '' for column in columns)])
    return ['arm', 'steps/s', 'peak memory, MiB', 'wall time, s'], rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Format a Markdown table whose columns also line up in a terminal."""
    widths = [max(3, *(len(row[i]) for row in [head, *rows])) for i in range(len(head))]
    for row in (head, ['-' * width for width in widths], *rows):
        yield '| ' + ' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + ' |'
