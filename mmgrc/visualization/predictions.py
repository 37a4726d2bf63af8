"""Read the output of ``tools/test.py --out``, and its ground truth."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS
from mmdet.visualization import get_palette
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.registry import init_default_scope

from mmgrc.runs.error import InputError, as_input_error
from mmgrc.runs.preflight import CocoFiles, check_datasets
from mmgrc.runs.preflight.coco_file import require_masks

__all__ = ['TestSet', 'check_predictions', 'class_colours', 'read_predictions', 'read_test_set']

_KEYS = ('img_id', 'img_path', 'pred_instances')
_INSTANCE_KEYS = ('bboxes', 'labels', 'scores')


class TestSet(NamedTuple):
    """The test set of a config."""

    truth: COCO
    classes: tuple[str, ...]
    """Names of the labels."""
    palette: Sequence[Sequence[int]]
    """Colours of the labels, RGB from 0 to 255."""


def read_test_set(config: Config) -> TestSet:
    """Read the annotations of a config's test set.

    Raises:
        InputError: There is no test set, it is not a single file in COCO's format, or a mask of it cannot be drawn.
    """
    if not config.get('test_dataloader'):
        raise InputError('the config has no test_dataloader: there is no ground truth to draw')
    check_datasets(config, ('test_dataloader',))
    init_default_scope(config.get('default_scope') or 'mmdet')
    with as_input_error('the test set cannot be built'):
        dataset = DATASETS.build(dict(config.test_dataloader.dataset, lazy_init=True))
    path = getattr(dataset, 'ann_file', None)
    if not path:
        raise InputError(f"the test set is a {type(dataset).__name__}: it has no annotation file in COCO's format")
    truth = CocoFiles().read(path)
    # Detectors of boxes need no masks.
    masked = [annotation for annotation in truth.anns.values() if annotation.get('segmentation')]
    try:
        require_masks(path, {**truth.dataset, 'annotations': masked}, truth.getCatIds(), 'evaluate')
    except ValueError as error:
        raise InputError(str(error)) from error
    classes = tuple(dataset.metainfo['classes'])
    return TestSet(truth, classes, class_colours(dataset.metainfo.get('palette'), len(classes)))


def class_colours(palette: object, count: int) -> Sequence[Sequence[int]]:
    """The colours of ``count`` labels, RGB from 0 to 255.

    Args:
        palette: Colours, or another value that MMDetection accepts (``'coco'``, ``'random'``). If there are too few,
            MMDetection's random colours are used.
        count: Number of labels.
    """
    if isinstance(palette, str):
        with contextlib.suppress(AssertionError):
            return get_palette(palette, count)
    if isinstance(palette, list | tuple) and len(palette) >= count:
        return palette
    return get_palette('random', count)


def read_predictions(path: str | Path) -> list[dict]:
    """Read the file that ``tools/test.py --out`` wrote.

    Returns:
        ``img_id``, ``img_path`` and ``pred_instances`` (``bboxes``, ``labels``, ``scores``, and RLE ``masks`` if the
        detector has them) of each image. There is at least one image.

    Raises:
        OSError: There is no such file.
        ValueError: It is another kind of file, or has no predictions.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'there are no predictions at {path}; tools/test.py --out writes them')
    try:
        predictions = load(path)
    except Exception as error:
        # A pickle may raise anything.
        raise _another(path, f'{type(error).__name__}: {error}') from error
    if not isinstance(predictions, list | tuple):
        raise _another(path, f'it is a {type(predictions).__name__}, not a list')
    if not predictions:
        raise ValueError(f'{path} is empty: the test had no images')
    for prediction in predictions:
        lacking = [key for key in _KEYS if key not in prediction] if isinstance(prediction, dict) else list(_KEYS)
        if not lacking:
            lacking = [key for key in _INSTANCE_KEYS if key not in prediction['pred_instances']]
        if lacking:
            raise _another(path, f'an image has no {" and no ".join(lacking)}')
    return list(predictions)


def _another(path: str | Path, why: str) -> ValueError:
    return ValueError(f'{path} is not what tools/test.py --out writes for a detector: {why}')


def check_predictions(predictions: Sequence[dict], truth: COCO, classes: Sequence[str]) -> None:
    """Check that predictions belong to a data set.

    Args:
        predictions: The result of :func:`read_predictions`.
        truth: The data set's annotations.
        classes: Names of the labels.

    Raises:
        ValueError: They belong to another data set.
    """
    hint = 'the predictions belong to another data set or config'
    unknown = [prediction['img_id'] for prediction in predictions if prediction['img_id'] not in truth.imgs]
    if unknown:
        raise ValueError(f'the annotations have no image {unknown[0]!r}: {hint}')
    names = [
        (Path(str(prediction['img_path'])), Path(str(record['file_name'])))
        for prediction in predictions
        if 'file_name' in (record := truth.imgs[prediction['img_id']])
    ]
    # Some data sets change suffixes, and a few names may have changed in the meantime.
    if names and not any(predicted.stem == known.stem for predicted, known in names):
        predicted, known = names[0]
        raise ValueError(f'{predicted.name} is {known.name} in the annotations, and no other name matches: {hint}')
    largest = max(
        (int(np.max(labels)) for p in predictions if len(labels := np.asarray(p['pred_instances']['labels']))),
        default=-1,
    )
    if largest >= len(classes):
        raise ValueError(f'there are predictions of label {largest}, but {len(classes)} classes: {hint}')
