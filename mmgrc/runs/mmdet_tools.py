"""Run MMDetection's own ``train.py`` and ``test.py``, from its wheel, after our checks."""

from __future__ import annotations

import gc
import importlib.util
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import mmdet
import torch
import torch.distributed as dist
from mmengine.config import Config

from mmgrc.engine.atomic_checkpoint_hook import CheckpointWriteError
from mmgrc.engine.data_error_hook import DataError
from mmgrc.engine.progress_hook import erase_progress
from mmgrc.engine.ranks import (
    LauncherError,
    check_launcher,
    is_first_of_machine,
    read_slurm_environment,
    start_cpu_ranks,
)
from mmgrc.engine.stop_signal_hook import TrainingStopped

from .config import build_model, config_path, load_config
from .error import InputError
from .preflight import (
    CocoFiles,
    check_checkpoint,
    check_datasets,
    check_evaluator,
    check_optimizer,
    check_parts,
    check_resume,
    check_weights,
    check_work_dir,
    read_datasets,
)

__all__ = ['main']

_LOADERS = {'train': ('train_dataloader', 'val_dataloader'), 'test': ('test_dataloader',)}
_EVALUATED = {'train': 'val', 'test': 'test'}
_MMENGINE_HOOKS = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')
# From sysexits.h: a temporary failure. By convention of shells: terminated by SIGINT.
_EXIT_STOPPED, _EXIT_INTERRUPTED = 75, 130


def _load_tool(name: str) -> ModuleType:
    path = Path(mmdet.__file__).parent / '.mim' / 'tools' / f'{name}.py'
    if not path.is_file():
        raise InputError(
            f'the installed mmdet has no {path}: it was not installed from its wheel. Type: pip install '
            '--force-reinstall --no-deps mmdet==3.3.0'
        )
    spec = importlib.util.spec_from_file_location(f'mmdet_{name}', path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def _work_dir(args: Namespace, config: Config) -> str:
    """The folder that MMDetection's tools will write to."""
    return args.work_dir or config.get('work_dir') or str(Path('work_dirs', Path(args.config).stem))


def _check_train(args: Namespace, config: Config) -> None:
    model = build_model(config)
    optimizer = check_optimizer(config, model, args.amp, args.auto_scale_lr)
    if args.resume is not None:
        args.resume = check_resume(config, args.resume, _work_dir(args, config), optimizer, model)
    check_weights(config, model)
    check_parts(config)


def _check_test(args: Namespace, config: Config) -> None:
    if args.out is not None and not args.out.endswith(('.pkl', '.pickle')):
        raise InputError(f'--out {args.out}: the predictions are a pickle; name it .pkl')
    check_checkpoint(config, args.checkpoint)


_CHECKS = {'train': _check_train, 'test': _check_test}


def _check_data(name: str, config: Config) -> None:
    files, phase = CocoFiles(), _EVALUATED[name]
    # Millions of small objects are created, none of them in a cycle. Searching for cycles would take half of the time.
    gc.disable()
    try:
        datasets = read_datasets(config, _LOADERS[name], files)
        check_evaluator(config, phase, datasets.get(f'{phase}_dataloader'), files)
    finally:
        gc.enable()


def _prepare(name: str, args: Namespace) -> None:
    """Validate the user's inputs, and adapt ``args`` to MMDetection's tool.

    Raises:
        InputError: An input is invalid.
    """
    config = load_config(args.config, args.cfg_options)
    if args.launcher in ('pytorch', 'slurm'):
        try:
            check_launcher(args.launcher)
        except LauncherError as error:
            raise InputError(str(error)) from error
    check_datasets(config, _LOADERS[name])
    _CHECKS[name](args, config)
    if is_first_of_machine():
        _check_data(name, config)
    check_work_dir(_work_dir(args, config))
    if args.launcher == 'slurm':
        read_slurm_environment()
    _drop_hooks(args, config)
    # Only we know `PACKAGE::NAME`. MMDetection's tool names its work dir after a file.
    args.config = config_path(args.config)
    if args.launcher in ('pytorch', 'slurm') and not torch.cuda.is_available():
        # The user's options are already merged into the config.
        args.cfg_options = {**(args.cfg_options or {}), **start_cpu_ranks(config)}


def _drop_hooks(args: Namespace, config: Config) -> None:
    """Let ``default_hooks.NAME=None`` turn off any hook. MMEngine accepts it only for its own."""
    hooks = config.get('default_hooks') or {}
    kept = {name: hook for name, hook in hooks.items() if hook is not None or name in _MMENGINE_HOOKS}
    if len(kept) < len(hooks):
        # The user's options are already merged into the config.
        options = {
            key: value for key, value in (args.cfg_options or {}).items() if key.split('.')[0] != 'default_hooks'
        }
        args.cfg_options = {**options, 'default_hooks': {'_delete_': True, **kept}}


def _run(tool: ModuleType) -> str | None:
    """Run the tool, and report errors that are not bugs as a message instead of a traceback."""
    try:
        tool.main()
    except CheckpointWriteError as error:
        return str(error)
    except DataError as error:
        # If it comes from a worker process, that process's traceback precedes the message.
        return (
            f'{str(error).rsplit("DataError: ", 1)[-1].strip()}. Replace the image, or remove it from the annotations.'
        )
    finally:
        # Whatever ends the run is reported on an empty line.
        erase_progress()
    return None


def main(name: str) -> str | None:
    """Run MMDetection's tool on this process's command line.

    Args:
        name: ``'train'`` or ``'test'``.

    Returns:
        An error message, if a check or the run fails for a reason that is not a bug. None after a run.

    Raises:
        SystemExit: With 75 after a stop by SIGUSR1, 130 after Ctrl-C.
    """
    message = stopped = None
    try:
        tool = _load_tool(name)
        args = tool.parse_args()
        _prepare(name, args)
        # The tool gets the prepared arguments.
        tool.parse_args = lambda: args
        message = _run(tool)
    except InputError as error:
        message = str(error)
    except TrainingStopped as error:
        stopped = str(error)
    except KeyboardInterrupt as error:
        last = ' --resume continues from the last checkpoint.' if name == 'train' else ''
        print(f'\n{name}: interrupted.{last}', file=sys.stderr)
        raise SystemExit(_EXIT_INTERRUPTED) from error
    if message:
        return f'{name}: {message}'
    if dist.is_available() and dist.is_initialized() and dist.get_backend() == 'gloo':
        _leave_cpu_ranks()
    if stopped:
        print(f'{name}: {stopped}', file=sys.stderr)
        raise SystemExit(_EXIT_STOPPED)
    return None


def _leave_cpu_ranks() -> None:
    # A rank that exits closes its connections, on which the others may be waiting.
    dist.barrier()
    # The wrapped model references the group and its threads. They abort the process if they outlive the interpreter.
    gc.collect()
    dist.destroy_process_group()
