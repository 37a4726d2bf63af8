"""Checks of evaluators. Each is built before the run, its file is read, and COCO's is tried on made-up detections."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.logging import print_log
from mmengine.registry import EVALUATOR, init_default_scope
from mmengine.structures import InstanceData
from torch.utils.data import Dataset

from mmgrc.datasets.images import evenly_spaced

from ..classes import hook_configs, registered_class
from ..error import InputError, as_input_error, first_few
from ..quiet import quiet
from .coco_file import require_crowd, require_masks
from .datasets import CocoFiles, head_classes, is_local
from .outputs import check_output_file

__all__ = ['check_evaluator', 'check_watched_metrics', 'require_metrics']

# What CocoMetric gives without metric_items.
_PRECISIONS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
_RECALLS = ('AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000')
_TRIED = 2
"""The number of images on which an evaluator is tried."""


def check_evaluator(config: Config, phase: str, dataset: Dataset | None, files: CocoFiles) -> None:
    """Build the evaluator of a run and evaluate made-up detections, from the ground truth of a few images.

    Args:
        config: The whole config.
        phase: ``'val'`` or ``'test'``.
        dataset: The data set that it will evaluate, already read. None if it has a custom reader.
        files: Stores the files that were read.

    Raises:
        InputError: The evaluator cannot be built, its file does not match the data set, the file that it writes cannot
            be written, or the evaluation of made-up detections fails.
    """
    names = [f'{phase}_{part}' for part in ('dataloader', 'cfg', 'evaluator')]
    lacking = [name for name in names if not config.get(name) and config.get(name) != {}]
    if len(lacking) == 3:
        return
    if lacking:
        raise InputError(
            f'{" and ".join(lacking)} of the config {"is" if len(lacking) == 1 else "are"} not set, '
            f'{" and ".join(name for name in names if name not in lacking)} {"is" if len(lacking) == 2 else "are"}. '
            'MMEngine needs all three, or none of them'
        )
    init_default_scope(config.get('default_scope') or 'mmdet')
    name, settings = names[2], config[names[2]]
    for metric in _metrics(settings):
        _check_file(config, metric, name, dataset, files)
    with as_input_error(f'{name} cannot be built'), quiet():
        evaluator = EVALUATOR.build(dict(settings)) if _has_metrics(settings) else Evaluator(settings)
    for metric in evaluator.metrics:
        _check_output(metric)
        _check_top(config, metric, name)
    coco = [metric for metric in evaluator.metrics if isinstance(metric, CocoMetric) and not metric.format_only]
    if coco and hasattr(dataset, 'get_data_info') and len(dataset):
        _try(evaluator, coco, dataset, name)


def _coco_metric_names(settings: object) -> set[str] | None:
    """The names under which an evaluator will log its values.

    Args:
        settings: ``val_evaluator`` of a config.

    Returns:
        Names such as ``coco/bbox_mAP``. None if they are not known before a validation: the evaluator has other metrics
        than MMDetection's COCO metric, or values of each class.
    """
    names: set[str] = set()
    for metric in _metrics(settings):
        kind = registered_class(metric, METRICS)
        if kind is None or not issubclass(kind, CocoMetric) or metric.get('classwise'):
            return None
        asked = metric.get('metric', 'bbox')
        for value in [asked] if isinstance(asked, str) else asked:
            if value == 'proposal_fast':
                found = [f'AR@{count}' for count in metric.get('proposal_nums', (100, 300, 1000))]
            elif value == 'proposal':
                found = metric.get('metric_items') or _RECALLS
            else:
                found = [f'{value}_{item}' for item in metric.get('metric_items') or _PRECISIONS]
            names |= {f'{metric.get("prefix") or kind.default_prefix}/{name}' for name in found}
    return names


def require_metrics(settings: object, metrics: Iterable[str], option: str) -> None:
    """Check that validations will log some values.

    Args:
        settings: ``val_evaluator`` of a config.
        metrics: Names of the values, such as ``coco/bbox_mAP``.
        option: What names them, for the message.

    Raises:
        InputError: There will be no such value.
    """
    names = _coco_metric_names(settings)
    for metric in metrics:
        if names is not None and metric not in names:
            near = difflib.get_close_matches(metric, names, n=1)
            meant = f'Did you mean {near[0]}? ' if near else ''
            raise InputError(
                f'{option}: validations have no {metric}. {meant}val_evaluator gives: {", ".join(sorted(names))}'
            )


def check_watched_metrics(config: Config) -> None:
    """Check the values of validations that hooks wait for: ``save_best`` and the ``monitor`` of early stopping.

    Raises:
        InputError: Validations will not have one.
    """
    if not config.get('val_evaluator'):
        return
    for name, hook in hook_configs(config).items():
        for key in ('save_best', 'monitor'):
            asked = hook.get(key) if isinstance(hook, Mapping) else None
            asked = [asked] if isinstance(asked, str) else asked or []
            require_metrics(config.val_evaluator, [one for one in asked if one != 'auto'], f'{name}.{key}')


def _has_metrics(settings: object) -> bool:
    return isinstance(settings, Mapping) and 'metrics' in settings


def _metrics(settings: object) -> Iterator[Mapping]:
    if _has_metrics(settings):
        settings = settings['metrics']
    yield from (m for m in ([settings] if isinstance(settings, Mapping) else settings) if isinstance(m, Mapping))


def _check_file(config: Config, metric: Mapping, name: str, dataset: Dataset | None, files: CocoFiles) -> None:
    """Compare the file of COCO's metric with the data set that it evaluates."""
    path, kind = metric.get('ann_file'), registered_class(metric, METRICS)
    plain = kind is not None and issubclass(kind, CocoMetric) and kind.compute_metrics is CocoMetric.compute_metrics
    if not plain or not path or not is_local(path, metric.get('backend_args')):
        return
    coco, problems = files.read(path), []
    if hasattr(dataset, 'get_data_info'):
        problems += _compare(config, coco, dataset, name, files, path)
    if metric.get('format_only'):
        return
    if all(annotation.get('iscrowd') for annotation in coco.anns.values()):
        what = 'nothing but crowds' if coco.anns else 'no annotations'
        problems.append(
            f'it has {what}: {name} has no ground truth, and AP will be -1. To write the detections '
            f'for a server, set {name}.format_only=True and {name}.outfile_prefix'
        )
    try:
        require_crowd(path, {'annotations': [], **coco.dataset})
        if 'segm' in metric.get('metric', 'bbox'):
            require_masks(path, coco.dataset, coco.get_cat_ids(cat_names=_class_names(dataset)), 'evaluate')
    except ValueError as error:
        raise InputError(f'{name}: {error}') from error
    if 0 in coco.anns:
        problems.append(
            "annotation 0: COCO's evaluation reads the id 0 as no match, so that this object counts as missed. Number "
            'the annotations from 1'
        )
    if problems:
        print_log(f'{path}: {"; ".join(problems)}', logger='current', level=logging.WARNING)


def _class_names(dataset: Dataset | None) -> Sequence[str]:
    """The classes that are evaluated. Empty, which means all, if they are not known."""
    return getattr(dataset, 'metainfo', {}).get('classes', ())


def _check_output(metric: BaseMetric) -> None:
    """Check that a metric can write its detections, which it does after the last image."""
    prefix, path = getattr(metric, 'outfile_prefix', None), getattr(metric, 'out_file_path', None)
    for file in (prefix and f'{prefix}.bbox.json', path):
        if file and is_local(file, None):
            check_output_file(file)


def _check_top(config: Config, metric: BaseMetric, name: str) -> None:
    """Check that a classifier has enough classes for its top-k accuracy, as mmpretrain does after the first epoch."""
    if config.get('default_scope') != 'mmpretrain':
        return
    from mmpretrain.evaluation import Accuracy

    classes = (config.model.get('head') or {}).get('num_classes')
    if isinstance(metric, Accuracy) and isinstance(classes, int) and max(metric.topk) > classes:
        raise InputError(
            f'{name} counts the top-{max(metric.topk)} accuracy, but model.head.num_classes={classes}. Set its topk: '
            f"--cfg-options '{name}.topk=[1]'"
        )


def _compare(config: Config, coco: COCO, dataset: Dataset, name: str, files: CocoFiles, path: str) -> list[str]:
    """Warnings about a file and the data set that is evaluated with it.

    Raises:
        InputError: The file lacks images, or a detector of the config has labels that the file does not know.
    """
    classes = dataset.metainfo['classes']
    problems = files.compare_labels(name, path, classes)
    ids = {dataset.get_data_info(index)['img_id'] for index in range(len(dataset))}
    if unknown := sorted(ids - coco.imgs.keys(), key=str):
        raise InputError(
            f'{name} reads {path}, which lacks {len(unknown)} of the {len(ids)} images that it is to evaluate (ids '
            f'{first_few(unknown)}): it is the file of another data set. Set {name}.ann_file to '
            f'{getattr(dataset, "ann_file", "that of the data set")}'
        )
    for head, value in head_classes(config.model):
        if isinstance(value, int) and value > len(classes):
            raise InputError(
                f'{head}={value}, but the data set has {len(classes)} classes ({first_few(classes)}): the evaluation '
                f'would end at the first detection of a label beyond them. Set it to {len(classes)}'
            )
    if more := len(coco.imgs.keys() - ids):
        problems.append(
            f'{name} evaluates {len(coco.imgs)} images, the data set gives {len(ids)}: the objects of the other {more} '
            'count as missed'
        )
    return problems


def _try(evaluator: Evaluator, metrics: Sequence[CocoMetric], dataset: Dataset, name: str) -> None:
    """Evaluate detections that are made up from the ground truth: boxes and masks of a few images.

    Raises:
        InputError: An image cannot be loaded, or the evaluation fails.
    """
    samples = []
    masks = any('segm' in metric.metrics for metric in metrics)
    for index in evenly_spaced(range(len(dataset)), _TRIED):
        info = dataset.get_data_info(index)
        with as_input_error(f'the image {info.get("img_path")} cannot be used'):
            sample = dataset[index]['data_samples']
        sample.pred_instances = _made_up(sample, info.get('instances', []), masks)
        samples.append(sample)
    evaluator.metrics = list(metrics)
    evaluator.dataset_meta = dataset.metainfo
    for metric in metrics:
        # Nothing is written, and only these images are evaluated.
        metric.outfile_prefix = None
        metric.img_ids = [sample.img_id for sample in samples]
    failure = f'{name} fails on made-up detections of {len(samples)} images, as it would after the first epoch'
    with as_input_error(failure), quiet():
        evaluator.process(data_samples=samples, data_batch=None)
        evaluator.evaluate(len(samples))


def _made_up(sample: DetDataSample, objects: Sequence[Mapping], masks: bool) -> InstanceData:
    """Detections of the objects of an image, or of one at its centre if there are none."""
    height, width = sample.ori_shape[:2]
    boxes = [one['bbox'] for one in objects] or [[width / 4, height / 4, width / 2, height / 2]]
    labels = [one['bbox_label'] for one in objects] or [0]
    made_up = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32), scores=torch.ones(len(boxes)), labels=torch.tensor(labels)
    )
    if masks:
        made_up.masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(made_up.masks, boxes, strict=True):
            mask[max(int(top), 0) : int(bottom) + 1, max(int(left), 0) : int(right) + 1] = True
    return made_up
