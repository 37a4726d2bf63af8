"""Run MMDetection's own ``train.py`` and ``test.py`` after our checks."""

from __future__ import annotations

from argparse import Namespace

from mmengine.config import Config

from mmgrc.engine.ranks import count_ranks

from .error import InputError
from .preflight import (
    CocoFiles,
    check_batch_size,
    check_checkpoint,
    check_datasets,
    check_evaluator,
    check_output_file,
    check_schedule,
    read_datasets,
)
from .tool import Tool, check_training, run_tool

__all__ = ['main']

_TRAIN_LOADERS, _TEST_LOADERS = ('train_dataloader', 'val_dataloader'), ('test_dataloader',)


def _require_detector(config: Config, tool: str) -> None:
    if config.get('default_scope') == 'mmpretrain':
        raise InputError(
            f'{config.filename} is a config of mmpretrain, not of a detector. Type: python tools/{tool}.py'
        )


def _check_train(args: Namespace, config: Config) -> None:
    _require_detector(config, 'pretrain')
    check_datasets(config, _TRAIN_LOADERS)
    check_training(args, config)


def _check_train_data(args: Namespace, config: Config) -> None:
    files, ranks = CocoFiles(), count_ranks(args.launcher)
    datasets = read_datasets(config, _TRAIN_LOADERS, files)
    dataset = datasets.get('train_dataloader')
    check_schedule(config, None if dataset is None else len(dataset), ranks)
    check_batch_size(config, ranks, args.auto_scale_lr)
    check_evaluator(config, 'val', datasets.get('val_dataloader'), files)


def _check_test(args: Namespace, config: Config) -> None:
    _require_detector(config, 'pretrain_test')
    check_datasets(config, _TEST_LOADERS)
    if args.out is not None:
        check_output_file(args.out, ('.pkl', '.pickle'))
    check_checkpoint(config, args.checkpoint)


def _check_test_data(args: Namespace, config: Config) -> None:
    files = CocoFiles()
    datasets = read_datasets(config, _TEST_LOADERS, files)
    check_evaluator(config, 'test', datasets.get('test_dataloader'), files)


_CHECKS = {'train': (_check_train, _check_train_data), 'test': (_check_test, _check_test_data)}


def main(name: str) -> str | None:
    """Run MMDetection's tool on this process's command line, see :func:`~mmgrc.runs.tool.run_tool`.

    Args:
        name: ``'train'`` or ``'test'``.
    """
    return run_tool(Tool(name, 'mmdet', 'mmdet==3.3.0', name, *_CHECKS[name]))
