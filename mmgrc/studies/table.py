"""The table of a study: read its arms and seeds from YAML, and check them before the first run."""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml
from mmengine.config import DictAction

from mmgrc.runs.config import load_config
from mmgrc.runs.error import InputError
from mmgrc.runs.preflight import require_metrics
from mmgrc.runs.quiet import quiet

__all__ = ['DEFAULT_METRICS', 'TOOLS', 'Arm', 'Run', 'Study', 'read_table']

TOOLS = (Path(__file__).parents[1] / '.mim' / 'tools').resolve()
"""The folder of the tools. In a checkout, it is the one of the repository."""
DEFAULT_METRICS = ('coco/bbox_mAP', 'coco/segm_mAP')
_STUDY_KEYS = ('config', 'cfg_options', 'env', 'arms', 'seeds', 'reference', 'metrics', 'keep_checkpoints')
_ARM_KEYS = ('name', 'config', 'cfg_options', 'env')
# It names a folder, and a row in tables.
_ARM_NAME = re.compile(r'\w[\w.+-]*')
_OPTION_KEY = re.compile(r'[A-Za-z_][\w.-]*')
_MAX_SEED = 2**32 - 1
# As in MMEngine's configs: {{$NAME}} or {{$NAME:default}}.
_VARIABLE = re.compile(r'\{\{\s*\$\s*(\w+)\s*(?::([^}]*))?\}\}')
# Options that the tool sets.
_OWN_OPTIONS = {'randomness.seed': 'seeds', 'work_dir': '--work-dir'}


@dataclass(frozen=True, eq=False)
class Arm:
    """One of the compared settings: a config with its options."""

    name: str
    config: str
    options: Mapping[str, str]
    """Entries of ``--cfg-options`` and their values, as on the command line."""
    env: Mapping[str, str]
    """Environment variables of its runs."""
    content: Mapping = field(default_factory=dict, repr=False)
    """The entries of the config with the options, as JSON has them."""


@dataclass(frozen=True, eq=False)
class Run:
    """One training of a study."""

    arm: Arm
    seed: int
    work_dir: Path
    ranks: int | None = 1
    """None: as many as a batch system will give it."""
    launcher: str = 'none'
    """What starts the ranks: ``'none'``, ``'pytorch'`` (``tools/dist_train.sh``) or ``'slurm'`` (``srun``)."""

    def __str__(self) -> str:
        return f'{self.arm.name}, seed {self.seed}'

    @property
    def definition(self) -> dict:
        """What identifies the run. A work dir with another definition belongs to another run."""
        return {
            'config': self.arm.config,
            'cfg_options': dict(self.arm.options),
            'env': dict(self.arm.env),
            'content': self.arm.content,
            'seed': self.seed,
            **({} if self.ranks is None else {'gpus_per_run': self.ranks}),
        }

    @property
    def command(self) -> list[str]:
        """The command line of the training."""
        train = [_python(), _shortest(TOOLS / 'train.py'), self.arm.config]
        starts = {
            'none': train,
            'pytorch': [_shortest(TOOLS / 'dist_train.sh'), self.arm.config, str(self.ranks)],
            'slurm': ['srun', '--kill-on-bad-exit=1', *train, '--launcher', 'slurm'],
        }
        options = [f'{key}={value}' for key, value in self.arm.options.items()]
        return [
            *(*starts[self.launcher], '--work-dir', str(self.work_dir), '--resume'),
            *('--cfg-options', *options, f'randomness.seed={self.seed}'),
        ]

    @property
    def env(self) -> dict[str, str]:
        """Environment variables of the training, besides those of this process."""
        # The launcher starts the interpreter by this name.
        python = {'PYTHON': _python()} if self.launcher == 'pytorch' else {}
        return {**python, **self.arm.env}

    def shell_line(self) -> str:
        """Return the command of the training with its environment variables, for a shell."""
        variables = [f'{name}={shlex.quote(value)}' for name, value in self.env.items()]
        return ' '.join([*variables, shlex.join(self.command)])


@dataclass(frozen=True)
class Study:
    """The content of a table."""

    path: Path
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    reference: str | None
    """Name of the arm that the others are compared with."""
    metrics: tuple[str, ...]
    keep_checkpoints: bool

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.path.stem

    def runs(self, work_dir: str | Path, ranks: int | None = 1, launcher: str | None = None) -> list[Run]:
        """List all runs: all arms of the first seed, then of the next. So a stopped study has complete pairs.

        Args:
            work_dir: Folder of the study. The folder of a run is ``ARM/seed_N`` in it.
            ranks: Number of ranks of each run. None: as many as a batch system will give it.
            launcher: See :attr:`Run.launcher`. None: ``'pytorch'`` for several ranks.
        """
        launcher = launcher or ('none' if ranks in (None, 1) else 'pytorch')
        return [
            Run(arm, seed, Path(work_dir).absolute() / arm.name / f'seed_{seed}', ranks, launcher)
            for seed in self.seeds
            for arm in self.arms
        ]


def _python() -> str:
    """The interpreter of the trainings."""
    return os.environ.get('PYTHON', sys.executable)


def _shortest(path: Path) -> str:
    """Return the path relative to the current folder if it lies below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def read_table(path: str | Path, reference: str | None = None) -> Study:
    """Read and check a table. docs/study.md describes its entries.

    Args:
        path: A YAML file. ``{{$NAME}}`` and ``{{$NAME:default}}`` in its strings stand for environment variables.
        reference: The arm that the others are compared with. None: the one that the table names.

    Raises:
        InputError: The table cannot be read, or an entry is wrong.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise InputError(f'the table {path} cannot be read: {error.strerror}') from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f'the table {path} is not YAML: {error}') from error
    try:
        study = _parse(path, content, reference)
    except InputError as error:
        raise InputError(f'the table {path}: {error}') from error
    arms = []
    for arm in study.arms:
        try:
            # MMEngine logs each variable that a config reads. The runs log them, too.
            with _environment(arm.env), quiet(logging.WARNING):
                config = load_config(arm.config, _parsed(arm.options))
            if not config.get('val_evaluator'):
                raise InputError('its config has no val_evaluator, so that its runs would end without metrics')
            require_metrics(config.val_evaluator, study.metrics, 'metrics')
        except InputError as error:
            raise InputError(f'the table {path}: arm {arm.name}: {error}') from error
        arms.append(replace(arm, content=json.loads(json.dumps(config.to_dict(), default=str))))
    return replace(study, arms=tuple(arms))


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while. A config may read them."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _parse(path: Path, content: object, reference: str | None) -> Study:
    if not isinstance(content, dict):
        raise InputError(f'it has no entries. It takes: {", ".join(_STUDY_KEYS)}')
    _check_keys(content, _STUDY_KEYS, '')
    entries = content.get('arms')
    if not isinstance(entries, list) or not entries:
        raise InputError('arms: give a list of arms, each with a name')
    common_options = _read_options(content.get('cfg_options'), 'cfg_options')
    common_env = _read_env(content.get('env'), 'env')
    arms = tuple(_read_arm(entry, i, content, common_options, common_env) for i, entry in enumerate(entries, start=1))
    names = [arm.name for arm in arms]
    # On a file system that ignores case, two such names are one folder.
    if twice := _repeated(name.lower() for name in names):
        raise InputError(f'arms: two are called {twice!r}. Names must differ by more than case')
    reference = content.get('reference') if reference is None else reference
    if reference is not None and reference not in names:
        raise InputError(f'reference={reference!r} is not one of the arms: {", ".join(names)}')
    metrics = content.get('metrics', list(DEFAULT_METRICS))
    if not isinstance(metrics, list) or not metrics or not all(isinstance(m, str) and m for m in metrics):
        raise InputError(f'metrics={metrics!r}: give a list of names, such as {list(DEFAULT_METRICS)}')
    if twice := _repeated(metrics):
        raise InputError(f'metrics: {twice} is given twice')
    keep = content.get('keep_checkpoints', False)
    if not isinstance(keep, bool):
        raise InputError(f'keep_checkpoints={keep!r}: give true or false')
    return Study(path, arms, _read_seeds(content.get('seeds')), reference, tuple(metrics), keep)


def _check_keys(entry: Mapping, allowed: Iterable[str], where: str) -> None:
    for key in entry:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, n=1)
            meant = f'Did you mean {near[0]}?' if near else f'It takes: {", ".join(allowed)}.'
            raise InputError(f'{where}{key}: there is no such entry. {meant}')


def _repeated(values: Iterable) -> object:
    """Return the first value that occurs a second time, or None."""
    seen = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def _read_seeds(seeds: object) -> tuple[int, ...]:
    if (
        not isinstance(seeds, list)
        or not seeds
        or not all(type(seed) is int and 0 <= seed <= _MAX_SEED for seed in seeds)
    ):
        raise InputError(f'seeds={seeds!r}: give a list of whole numbers from 0 to {_MAX_SEED}, such as [0, 1, 2]')
    if (twice := _repeated(seeds)) is not None:
        raise InputError(f'seeds: {twice} is given twice')
    return tuple(seeds)


def _read_arm(entry: object, number: int, content: Mapping, options: Mapping[str, str], env: Mapping[str, str]) -> Arm:
    if not isinstance(entry, dict):
        raise InputError(f'arm {number}: {entry!r}: give its entries: {", ".join(_ARM_KEYS)}')
    name = entry.get('name')
    if not isinstance(name, str) or not _ARM_NAME.fullmatch(name):
        raise InputError(
            f'arm {number}: name={name!r}: give a name of letters, digits and _ . + -. It also names a folder'
        )
    _check_keys(entry, _ARM_KEYS, f'arm {name}: ')
    config = entry.get('config', content.get('config'))
    if not isinstance(config, str):
        raise InputError(f'arm {name}: config={config!r}: name a config, here or for all arms')
    return Arm(
        name,
        _expand(config, f'arm {name}: config'),
        {**options, **_read_options(entry.get('cfg_options'), f'arm {name}: cfg_options')},
        {**env, **_read_env(entry.get('env'), f'arm {name}: env')},
    )


def _expand(text: str, where: str) -> str:
    """Put environment variables in.

    Raises:
        InputError: One is not set and has no default.
    """

    def value(match: re.Match) -> str:
        name, default = match.groups()
        found = os.environ.get(name, default)
        if found is None:
            raise InputError(f'{where}: the environment variable {name} is not set: put {name}=... before the command')
        return found

    return _VARIABLE.sub(value, text)


def _expand_all(value: object, where: str) -> object:
    """Put environment variables into a string, or into the strings of a list."""
    if isinstance(value, list):
        return [_expand_all(part, where) for part in value]
    return _expand(value, where) if isinstance(value, str) else value


def _read_env(entry: object, where: str) -> dict[str, str]:
    entry = {} if entry is None else entry
    if not isinstance(entry, dict):
        raise InputError(f'{where}={entry!r}: give NAME: value')
    for name, value in entry.items():
        if not re.fullmatch(r'[A-Za-z_]\w*', str(name)) or type(value) not in (str, int, float):
            raise InputError(f'{where}: {name}: {value!r}: give the name of a variable, and a string or a number')
    return {name: _expand(str(value), f'{where}.{name}') for name, value in entry.items()}


def _read_options(entry: object, where: str) -> dict[str, str]:
    """Convert a list of ``key=value``, or a mapping that may be nested, to options as on the command line."""
    if entry is None:
        return {}
    if isinstance(entry, list):
        for option in entry:
            if not isinstance(option, str) or '=' not in option:
                raise InputError(f'{where}: {option!r}: give KEY=VALUE, as for --cfg-options')
        pairs = [tuple(option.split('=', 1)) for option in entry]
        if twice := _repeated(key for key, _ in pairs):
            raise InputError(f'{where}: {twice} is given twice')
        options = dict(pairs)
    elif isinstance(entry, dict):
        options = dict(_flatten(entry, ''))
    else:
        raise InputError(f'{where}={entry!r}: give a list of KEY=VALUE, or KEY: value')
    for key, value in options.items():
        if not _OPTION_KEY.fullmatch(key):
            raise InputError(f'{where}: {key!r} is not an entry of a config: write it like train_cfg.max_epochs')
        if key in _OWN_OPTIONS:
            raise InputError(f'{where}: {key} is set by the tool: use {_OWN_OPTIONS[key]}')
        options[key] = value = _expand_all(value, f'{where}: {key}')
        _check_option(key, value, where)
    return {key: value if isinstance(value, str) else _typed(value) for key, value in options.items()}


def _flatten(entry: Mapping, prefix: str) -> Iterable[tuple[str, object]]:
    for key, value in entry.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


def _typed(value: object) -> str:
    """Format a value for ``--cfg-options``."""
    if isinstance(value, list):
        return '[' + ','.join(_typed(v) for v in value) + ']'
    return str(value)


def _check_option(key: str, value: object, where: str) -> None:
    """Raise an error if MMEngine would read another value from the command line than the table gives."""
    text = value if isinstance(value, str) else _typed(value)
    try:
        parsed = _parsed({key: text})[key]
    except (AssertionError, argparse.ArgumentError, IndexError, ValueError) as error:
        raise InputError(f'{where}: {key}={text}: --cfg-options cannot read it: {error}') from error
    # A string may become another type, like '1e-4' or '(1,2)'. If it stays a string, it must be the same.
    if parsed != value and (not isinstance(value, str) or isinstance(parsed, str)):
        raise InputError(f'{where}: {key}: --cfg-options would read {text!r} as {parsed!r}; set it in your own config')


def _parsed(options: Mapping[str, str]) -> dict:
    """Parse the options as ``--cfg-options`` does."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    typed = [f'{key}={value}' for key, value in options.items()]
    return parser.parse_args(['--cfg-options', *typed] if typed else []).cfg_options
