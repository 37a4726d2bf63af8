"""MMDetection's own ``train.py`` and ``test.py``, as its wheel carries them, with our checks before they start."""

from __future__ import annotations

import importlib.util
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import mmdet

from .config import config_path
from .preflight import PreflightError, build_model, check_checkpoint, check_datasets, check_weights, load_config

__all__ = ['main']


def _load_tool(name: str) -> ModuleType:
    path = Path(mmdet.__file__).parent / '.mim' / 'tools' / f'{name}.py'
    if not path.is_file():
        raise PreflightError(
            f'the installed mmdet has no {path}: it was not installed from its wheel. Type: pip install '
            '--force-reinstall --no-deps mmdet==3.3.0'
        )
    spec = importlib.util.spec_from_file_location(f'mmdet_{name}', path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def _check_train(args: Namespace) -> None:
    config = load_config(args.config, args.cfg_options)
    check_datasets(config, ('train_dataloader', 'val_dataloader'))
    if args.resume in (None, 'auto'):
        build_model(config)
    else:
        check_checkpoint(config, args.resume)
    check_weights(config)


def _check_test(args: Namespace) -> None:
    config = load_config(args.config, args.cfg_options)
    check_datasets(config, ('test_dataloader',))
    if args.out is not None and not args.out.endswith(('.pkl', '.pickle')):
        raise PreflightError(f'--out {args.out}: the predictions are a pickle; name it .pkl')
    check_checkpoint(config, args.checkpoint)


_CHECKS = {'train': _check_train, 'test': _check_test}


def main(name: str) -> str | None:
    """Run MMDetection's tool on this process's command line.

    Args:
        name: ``'train'`` or ``'test'``.

    Returns:
        A message for the user where a check fails; None after a run.
    """
    try:
        tool = _load_tool(name)
        args = tool.parse_args()
        _CHECKS[name](args)
    except PreflightError as error:
        return f'{name}: {error}'
    # `mmgrc::NAME` is for us; MMDetection's tool names its work dir after a file.
    sys.argv = [config_path(arg) if arg == args.config else arg for arg in sys.argv]
    tool.main()
    return None
