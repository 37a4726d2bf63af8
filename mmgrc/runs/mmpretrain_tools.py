"""Run mmpretrain's own ``train.py`` and ``test.py`` after our checks."""

from __future__ import annotations

from argparse import Namespace

from mmengine.config import Config

from mmgrc.engine.ranks import count_ranks
from mmgrc.env.pretraining import PretrainingError, check_pretraining

from .error import InputError
from .preflight import (
    CocoFiles,
    check_batch_size,
    check_checkpoint,
    check_evaluator,
    check_image_folders,
    check_output_file,
    check_schedule,
    read_image_folders,
)
from .tool import Tool, check_training, run_tool

__all__ = ['main']

_TRAIN_LOADERS, _TEST_LOADERS = ('train_dataloader', 'val_dataloader'), ('test_dataloader',)
_METRICS_FORMATS = ('.json', '.yaml', '.yml', '.pkl', '.pickle')


def _require_classifier(config: Config, tool: str) -> None:
    if config.get('default_scope') != 'mmpretrain':
        raise InputError(
            f'{config.filename} is not a config of mmpretrain (default_scope={config.get("default_scope")!r}). A '
            f"detector's is for: python tools/{tool}.py"
        )


def _complete_loaders(args: Namespace, config: Config) -> None:
    """Set what mmpretrain's training will set, so that the loaders are checked as the run builds them."""
    for loader in _TRAIN_LOADERS:
        if loader == 'val_dataloader' and args.no_validate:
            for part in ('dataloader', 'cfg', 'evaluator'):
                config[f'val_{part}'] = None
        elif config.get(loader):
            config[loader].setdefault('persistent_workers', True)
            if args.no_persistent_workers:
                config[loader].persistent_workers = False


def _check_train(args: Namespace, config: Config) -> None:
    _require_classifier(config, 'train')
    _complete_loaders(args, config)
    check_image_folders(config, _TRAIN_LOADERS)
    check_training(args, config)


def _check_train_data(args: Namespace, config: Config) -> None:
    images, ranks = read_image_folders(config, _TRAIN_LOADERS), count_ranks(args.launcher)
    check_schedule(config, images.get('train_dataloader'), ranks)
    check_batch_size(config, ranks, args.auto_scale_lr)
    check_evaluator(config, 'val', None, CocoFiles())


def _check_test(args: Namespace, config: Config) -> None:
    _require_classifier(config, 'test')
    check_image_folders(config, _TEST_LOADERS)
    if args.out_item is not None and args.out is None:
        raise InputError(f'--out-item {args.out_item}: name the file to write with --out')
    if args.out is not None:
        check_output_file(args.out, _METRICS_FORMATS if args.out_item == 'metrics' else ('.pkl', '.pickle'))
    check_checkpoint(config, args.checkpoint)


def _check_test_data(args: Namespace, config: Config) -> None:
    read_image_folders(config, _TEST_LOADERS)
    check_evaluator(config, 'test', None, CocoFiles())


# For each tool, mmpretrain's file and the checks.
_TOOLS = {
    'pretrain': ('train', _check_train, _check_train_data),
    'pretrain_test': ('test', _check_test, _check_test_data),
}


def main(name: str) -> str | None:
    """Run mmpretrain's tool on this process's command line, see :func:`~mmgrc.runs.tool.run_tool`.

    Args:
        name: ``'pretrain'`` or ``'pretrain_test'``.
    """
    try:
        check_pretraining()
    except PretrainingError as error:
        return f'{name}: {error}'
    return run_tool(Tool(name, 'mmpretrain', 'mmpretrain==1.2.0', *_TOOLS[name]))
