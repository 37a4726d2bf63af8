"""Run the tools that OpenMMLab's packages bring, such as their ``train.py``, from their wheels, after our checks."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

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
    check_optimizer,
    check_parts,
    check_resume,
    check_teacher,
    check_watched_metrics,
    check_weights,
    check_work_dir,
)
from .processes import end_forks_with_this_process, end_with_parent

__all__ = ['Tool', 'check_training', 'run_tool']

_MMENGINE_HOOKS = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')
# From sysexits.h: a temporary failure. By convention of shells: terminated by SIGINT.
_EXIT_STOPPED, _EXIT_INTERRUPTED = 75, 130


class Tool(NamedTuple):
    """A tool of a package, and what is checked before it runs."""

    name: str
    """The name of our tool, which begins its messages."""
    package: str
    """Import name of the package that the tool comes from."""
    version: str
    """What pip installs: the package's name and version."""
    file: str
    """The tool's file, without its suffix: ``'train'`` or ``'test'``."""
    check: Callable[[Namespace, Config], None]
    """Validates the inputs, quickly. It may adapt the arguments."""
    check_data: Callable[[Namespace, Config], None]
    """Reads the data sets. One process of a machine does it for all."""


def _load_tool(tool: Tool) -> ModuleType:
    package = importlib.import_module(tool.package)
    path = Path(package.__file__).parent / '.mim' / 'tools' / f'{tool.file}.py'
    if not path.is_file():
        raise InputError(
            f'the installed {tool.package} has no {path}: it was not installed from its wheel. Type: pip install '
            f'--force-reinstall --no-deps {tool.version}'
        )
    spec = importlib.util.spec_from_file_location(f'{tool.package}_{tool.file}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _work_dir(args: Namespace, config: Config) -> str:
    """The folder that OpenMMLab's tools will write to."""
    return args.work_dir or config.get('work_dir') or str(Path('work_dirs', Path(args.config).stem))


def check_training(args: Namespace, config: Config) -> None:
    """Check model, optimizer, initial weights, hooks and schedulers of a training, and what it resumes from.

    Args:
        args: The arguments of the tool. ``resume`` may be replaced by another checkpoint.
        config: The whole config.

    Raises:
        InputError: One of them cannot be used.
    """
    model = build_model(config)
    optimizer = check_optimizer(config, model, args.amp, args.auto_scale_lr)
    if args.resume is not None:
        args.resume = check_resume(config, args.resume, _work_dir(args, config), optimizer, model)
    check_weights(config, model, resumes=args.resume is not None)
    check_parts(config)
    check_teacher(config, model)
    check_watched_metrics(config)


def _check_data(tool: Tool, args: Namespace, config: Config) -> None:
    # Millions of small objects are created, none of them in a cycle. Searching for cycles would take half of the time.
    gc.disable()
    try:
        tool.check_data(args, config)
    finally:
        gc.enable()


def _prepare(tool: Tool, args: Namespace) -> None:
    """Validate the user's inputs, and adapt ``args`` to the package's tool.

    Raises:
        InputError: An input is invalid.
    """
    config = load_config(args.config, args.cfg_options)
    if args.launcher in ('pytorch', 'slurm'):
        try:
            check_launcher(args.launcher)
            if args.launcher == 'slurm':
                read_slurm_environment()
        except LauncherError as error:
            raise InputError(str(error)) from error
    tool.check(args, config)
    if is_first_of_machine():
        _check_data(tool, args, config)
    check_work_dir(_work_dir(args, config))
    _drop_hooks(args, config)
    # Only we know `PACKAGE::NAME`. OpenMMLab's tools name their work dir after a file.
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


def _run(module: ModuleType) -> str | None:
    """Run the tool, and report errors that are not bugs as a message instead of a traceback."""
    try:
        module.main()
    except CheckpointWriteError as error:
        return str(error)
    except DataError as error:
        # If it comes from a worker process, that process's traceback precedes the message.
        return f'{str(error).rsplit("DataError: ", 1)[-1].strip()}. Replace the image, or remove it from the data set.'
    finally:
        # Whatever ends the run is reported on an empty line.
        erase_progress()
    return None


def run_tool(tool: Tool) -> str | None:
    """Run a tool on this process's command line.

    Returns:
        An error message, if a check or the run fails for a reason that is not a bug. None after a run.

    Raises:
        SystemExit: With 75 after a stop by SIGUSR1, 130 after Ctrl-C.
    """
    message = stopped = None
    # torchrun starts the ranks in sessions of their own. Otherwise they would train on if it was killed.
    if 'TORCHELASTIC_RUN_ID' in os.environ:
        end_with_parent()
    try:
        module = _load_tool(tool)
        args = module.parse_args()
        _prepare(tool, args)
        # The tool gets the prepared arguments.
        module.parse_args = lambda: args
        end_forks_with_this_process()
        message = _run(module)
    except InputError as error:
        message = str(error)
    except TrainingStopped as error:
        stopped = str(error)
    except KeyboardInterrupt as error:
        last = ' --resume continues from the last checkpoint.' if tool.file == 'train' else ''
        print(f'\n{tool.name}: interrupted.{last}', file=sys.stderr)
        raise SystemExit(_EXIT_INTERRUPTED) from error
    if message:
        return f'{tool.name}: {message}'
    if dist.is_available() and dist.is_initialized() and dist.get_backend() == 'gloo':
        _leave_cpu_ranks()
    if stopped:
        print(f'{tool.name}: {stopped}', file=sys.stderr)
        raise SystemExit(_EXIT_STOPPED)
    return None


def _leave_cpu_ranks() -> None:
    # A rank that exits closes its connections, on which the others may be waiting.
    dist.barrier()
    # The wrapped model references the group and its threads. They abort the process if they outlive the interpreter.
    gc.collect()
    dist.destroy_process_group()
