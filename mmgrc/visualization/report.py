"""Write a run as one self-contained HTML page."""

from __future__ import annotations

import base64
import io
import math
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmdet.evaluation import CocoMetric
from mmdet.registry import DATASETS, METRICS
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope

from mmgrc.datasets.images import evenly_spaced
from mmgrc.runs.classes import registered_class
from mmgrc.runs.config import load_config
from mmgrc.runs.error import InputError
from mmgrc.runs.quiet import quiet

from .curves import (
    draw_losses,
    draw_metrics,
    draw_monitor,
    find_logs,
    metric_label,
    pick_metrics,
    read_monitor,
    read_scalars,
    validation_unit,
)
from .detections import draw_predictions
from .mix import draw_lambda, read_lambda
from .predictions import TestSet, check_predictions, read_predictions, read_test_set

__all__ = ['class_ap', 'write_report']

_MONITORED = {
    'grc_sigma_lambda': 'σ(λ), the share of the memory',
    'grc_update_gate': 'mean update gate',
    'grc_reset_gate': 'mean reset gate',
    'grc_cache_change': 'change of the cache in a step, relative',
    'grc_rank_drift': 'difference of the caches between ranks',
}

_EXAMPLES = 8

_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 1080px; padding: 16px; font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a;
  background: #fff; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0.2em 0; } h2 { font-size: 1.2rem; margin: 1.6em 0 0.5em;
  border-bottom: 1px solid #ccc; }
.grid { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
figure { margin: 0; } img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 14px 3px 0; text-align: left; border-bottom: 1px solid #e2e2e2; vertical-align: top; }
td:first-child { overflow-wrap: break-word; }
td.number, th.number { text-align: right; }
pre { overflow: auto; max-height: 70vh; padding: 10px; background: #f4f4f4; font-size: 0.8rem; overflow-wrap: normal; }
summary { cursor: pointer; } .note { color: #555; }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def write_report(work_dir: str | Path, out: str | Path, predictions: str | Path | None = None) -> list[str]:
    """Write the report of a training.

    Args:
        work_dir: The work dir of a training.
        out: The page to write.
        predictions: The output of ``tools/test.py --out``. None: ``predictions.pkl`` in the work dir, if it exists.

    Returns:
        What could not be shown, and why.

    Raises:
        FileNotFoundError: There is no log, no config, or no such file of predictions.
        InputError: The config cannot be read.
    """
    work_dir = Path(work_dir)
    training, validation = read_scalars(work_dir)
    log = find_logs(work_dir)[-1]
    config = load_config(str(_newest(work_dir.glob('*.py'), f'a config in {work_dir}')))
    # By default a test has the same work dir, and replaces the config there.
    own = log.with_name('config.py')
    trained = load_config(str(own)) if own.is_file() else config
    if predictions is None:
        predictions = work_dir / 'predictions.pkl'
    elif not Path(predictions).is_file():
        raise FileNotFoundError(f'there are no predictions at {predictions}; tools/test.py --out writes them')

    notes: list[str] = []
    sections = [
        _summary(trained, training, validation),
        ('Curves', _grid(_curves(training, validation))),
        ('Memory', _memory(work_dir, notes)),
        *([] if _is_classifier(config) else _detections(config, Path(predictions), notes)),
        ('Environment', _table(['', ''], _environment(log.parent.parent))),
        (
            'Config',
            f'<details><summary>{escape(Path(config.filename).name)}</summary>'
            f'<pre>{escape(trained.pretty_text)}</pre></details>',
        ),
    ]
    body = '\n'.join(f'<h2>{escape(title)}</h2>\n{content}' for title, content in sections)
    title = f'{Path(config.filename).stem}: report of a training'
    Path(out).write_text(_PAGE.format(title=escape(title), style=_STYLE, body=body), encoding='utf-8')
    return notes


def _is_classifier(config: Config) -> bool:
    return config.get('default_scope') == 'mmpretrain'


def _newest(paths: Iterable[Path], what: str) -> Path:
    found = sorted(paths, key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f'there is no {what}: give the work dir of a training')
    return found[-1]


def _summary(config: Config, training: Mapping[int, dict], validation: Mapping[int, dict]) -> tuple[str, str]:
    last, unit = training[max(training)], validation_unit(validation)
    length = f'{last["iter"]} iterations'
    # A loop by iterations logs a single endless epoch unless `log_processor.by_epoch` is changed.
    epochs = last.get('epoch') or max(validation, default=0)
    if unit == 'epoch' and epochs and 'max_iters' not in (config.get('train_cfg') or {}):
        length = f'{epochs} epochs, {length}'
    parts = (config.model, config.model.get('backbone') or {})
    rows = [
        (
            'classifier' if _is_classifier(config) else 'detector',
            ', '.join(str(part['type']) for part in parts if 'type' in part),
        ),
        ('trained', f'{length}; the last loss is {last["loss"]:.3f}'),
    ]
    metrics = pick_metrics(validation)
    for key in [key for key in metrics if not key.endswith('50')] or metrics:
        values = {step: value for step, record in validation.items() if (value := record.get(key)) is not None}
        # NaN compares as neither greater nor less.
        best = max(values, key=lambda step: -math.inf if math.isnan(values[step]) else values[step])
        rows.append(
            (
                metric_label(key).replace('_', ' '),
                f'{values[max(values)]:.3f} after the last validation ({unit} {max(values)}), '
                f'{values[best]:.3f} at best ({unit} {best})',
            )
        )
    return 'Summary', _table(['', ''], rows)


def _picture(draw: Callable[[Axes], None], alt: str, size: tuple[float, float] = (5.4, 3.8)) -> str:
    figure, axis = plt.subplots(figsize=size)
    draw(axis)
    figure.tight_layout()
    return _embed(figure, alt)


def _embed(figure: Figure, alt: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=110)
    plt.close(figure)
    return _image(buffer.getvalue(), alt)


def _image(data: bytes, alt: str, kind: str = 'png') -> str:
    encoded = base64.b64encode(data).decode('ascii')
    return f'<figure><img alt="{escape(alt)}" src="data:image/{kind};base64,{encoded}"></figure>'


def _grid(pictures: Iterable[str]) -> str:
    return f'<div class="grid">{"".join(pictures)}</div>'


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    def cell(tag: str, value: object) -> str:
        number = isinstance(value, float)
        text = ('-' if math.isnan(value) else f'{value:.3f}') if number else escape(str(value))
        return f'<{tag}{" class=number" if number else ""}>{text}</{tag}>'

    header = ''.join(cell('th', name) for name in head) if any(head) else ''
    lines = ''.join(f'<tr>{"".join(cell("td", value) for value in row)}</tr>' for row in rows)
    return f'<div class="scroll"><table><tr>{header}</tr>{lines}</table></div>'


def _note(text: str, notes: list[str]) -> str:
    notes.append(text)
    return f'<p class="note">{escape(text)}</p>'


def _curves(training: Mapping[int, dict], validation: Mapping[int, dict]) -> Iterable[str]:
    yield _picture(lambda axis: draw_losses(axis, training), 'losses over the iterations')
    if validation:
        yield _picture(lambda axis: draw_metrics(axis, validation), f'metrics over the {validation_unit(validation)}s')


def _memory(work_dir: Path, notes: list[str]) -> str:
    series = read_monitor(work_dir)
    content = ''
    if series:
        try:
            pictures = [
                _picture(lambda axis, q=quantity, t=title: draw_monitor(axis, series[q], t), title)
                for quantity, title in _MONITORED.items()
                if quantity in series
            ]
        except ValueError as error:
            # A backbone of the user's own, with its own names of layers.
            pictures = [_note(f'The logged memory is not drawn: {error}', notes)]
        skipped = max(series.get('grc_skipped_steps', {}).get('', {0: 0}).values())
        content += _grid(pictures) + f'<p>Steps that were not stored because a value was not finite: {skipped:g}.</p>'
    else:
        content += _note(
            'The memory was not logged: the config has no GRCMonitorHook, the run ended before its first interval, or '
            'the model has no memory.',
            notes,
        )
    try:
        checkpoint = _newest(work_dir.glob('*.pth'), f'checkpoint in {work_dir}')
        shares = read_lambda(checkpoint)
    except (OSError, ValueError) as error:
        return content + _note(f'σ(λ) is not shown: {error}', notes)
    size = (min(max(5.4, 0.32 * len(shares)), 11), 3.4)
    return content + _picture(lambda axis: draw_lambda(axis, shares, f'σ(λ) in {checkpoint.name}'), 'σ(λ)', size)


def class_ap(config: Config, predictions: Sequence[dict]) -> dict[str, dict[str, float]]:
    """Evaluate each class, with the evaluator of a config.

    Args:
        config: A config whose ``test_evaluator`` is a ``CocoMetric`` or a subclass of it, or a list with one.
        predictions: The output of ``tools/test.py --out``.

    Returns:
        For each metric, such as ``'bbox'``, and each class its AP, in [0, 1]. NaN if the data set has no such object.

    Raises:
        ValueError: The evaluator is of another type, or there are no detections.
    """
    evaluators = config.get('test_evaluator') or ()
    evaluators = [evaluators] if isinstance(evaluators, dict) else evaluators
    init_default_scope(config.get('default_scope') or 'mmdet')
    settings = next((e for e in evaluators if _is_coco(e)), None)
    if settings is None:
        raise ValueError('test_evaluator is not a CocoMetric')
    metainfo = DATASETS.build(dict(config.test_dataloader.dataset, lazy_init=True)).metainfo
    metrics = settings.get('metric', 'bbox')
    # Proposals have no class.
    metrics = [metric for metric in ([metrics] if isinstance(metrics, str) else metrics) if metric in ('bbox', 'segm')]
    if not metrics:
        raise ValueError('test_evaluator has neither the metric bbox nor segm')
    fixed = {'classwise': True, 'prefix': 'coco', 'outfile_prefix': None, 'format_only': False}
    if registered_class(settings, METRICS) is CocoMetric:
        # It names the right class in any order of the file's categories.
        fixed['type'] = 'FastCocoMetric'
    result = {}
    # One metric at a time, since the keys of the classes are the same for each.
    for metric in metrics:
        evaluator = Evaluator({**settings, **fixed, 'metric': metric})
        evaluator.dataset_meta = metainfo
        values = evaluator.offline_evaluate(predictions)
        if not any(key.endswith('_precision') for key in values):
            raise ValueError('the predictions have no detections')
        # A class without annotations has no value.
        result[metric] = {name: float(values.get(f'coco/{name}_precision', 'nan')) for name in metainfo['classes']}
    return result


def _is_coco(settings: Mapping) -> bool:
    kind = registered_class(settings, METRICS)
    return kind is not None and issubclass(kind, CocoMetric)


def _detections(config: Config, predictions: Path, notes: list[str]) -> Iterable[tuple[str, str]]:
    if not predictions.is_file():
        command = f'python tools/test.py {config.filename} CHECKPOINT --out {predictions}'
        yield 'Classes and examples', _note(f'There are no predictions. This command writes them: {command}', notes)
        return
    try:
        found = read_predictions(predictions)
        test_set = read_test_set(config)
        check_predictions(found, test_set.truth, test_set.classes)
    except (InputError, ValueError, OSError) as error:
        yield 'Classes and examples', _note(f'The predictions cannot be evaluated: {error}', notes)
        return
    try:
        with quiet():
            values = class_ap(config, found)
    except Exception as error:
        # Evaluators are third-party code and may raise anything. The examples can be shown without them.
        why = error if isinstance(error, ValueError) else f'{type(error).__name__}: {error}'
        yield 'AP of each class', _note(f'The predictions cannot be evaluated: {why}', notes)
    else:
        rows = [[name, *(values[metric][name] for metric in values)] for name in test_set.classes]
        yield 'AP of each class', _table(['class', *(f'{metric} AP' for metric in values)], rows)
    yield 'Examples', _examples(found, test_set, notes)


def _examples(found: Sequence[dict], test_set: TestSet, notes: list[str]) -> str:
    pictures, problems = [], []
    with tempfile.TemporaryDirectory() as folder:
        # JPEG: photographs are much smaller.
        picture = Path(folder, 'example.jpg')
        for prediction in evenly_spaced(found, _EXAMPLES):
            try:
                problems += draw_predictions([prediction], *test_set, picture, 1)
            except ValueError as error:
                problems.append(str(error))
                continue
            name = f'ground truth beside predictions, image {prediction["img_id"]}'
            pictures.append(_image(picture.read_bytes(), name, 'jpeg'))
    return _grid(pictures) + ''.join(_note(f'Of the examples: {problem}', notes) for problem in problems)


def _environment(folder: Path) -> list[tuple[str, str]]:
    """MMEngine's log of the environment at the start of the run that wrote to the folder."""
    logs = sorted(folder.glob('*.log'))
    if not logs:
        return [('environment', 'there is no log of it')]
    block = re.search(r'System environment:\n(.*?)\n-{20}', logs[-1].read_text(errors='replace'), re.S)
    # Further lines of a value, such as torch's compile options, are less indented.
    pairs = re.findall(r'^ {4}(\S[^:\n]*): (.*)$', block[1] if block else '', re.M)
    return [(name, value) for name, value in pairs if name != 'PyTorch compiling details']
