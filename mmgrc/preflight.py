"""Checks that run before training and testing: bad input ends here, with one message that says what to do."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from .checkpoint import read_checkpoint
from .config import CONFIG_DIR, config_path
from .models.convert import checkpoint_state

__all__ = ['PreflightError', 'build_model', 'check_checkpoint', 'check_datasets', 'check_weights', 'load_config']

_NO_WEIGHTS = '--cfg-options model.backbone.init_cfg=None'


class PreflightError(Exception):
    """Input with which a run cannot work. The message names it and says what to do."""


def load_config(path: str, options: dict | None = None) -> Config:
    """Read a config and merge the command line's options into it.

    Args:
        path: A file, or ``mmgrc::NAME``.
        options: What ``--cfg-options`` gave.

    Raises:
        PreflightError: There is no such config, or it cannot be read.
    """
    try:
        resolved = Path(config_path(path))
    except FileNotFoundError as error:
        raise PreflightError(str(error)) from error
    if not resolved.is_file():
        own = sorted(str(Path('configs') / p.relative_to(CONFIG_DIR)) for p in CONFIG_DIR.rglob('*.py'))
        own = [name for name in own if '_base_' not in Path(name).parts]
        near = difflib.get_close_matches(path, own, n=3, cutoff=0.5) or own
        raise PreflightError(f'there is no config {path}. Did you mean one of these? {", ".join(near)}')
    # Said by mmengine at each base config. requirements.txt pins setuptools, which is the remedy.
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
    try:
        config = Config.fromfile(str(resolved))
        config.merge_from_dict(options or {})
    except Exception as error:
        # Configs are Python: anything may go wrong in them.
        raise PreflightError(f'the config {path} cannot be read: {type(error).__name__}: {error}') from error
    return config


def _datasets(config: dict) -> Iterator[dict]:
    """The data sets below a ``dataset`` entry, without wrappers around them."""
    if 'dataset' in config:
        yield from _datasets(config['dataset'])
    elif 'datasets' in config:
        for inner in config['datasets']:
            yield from _datasets(inner)
    else:
        yield config


def check_datasets(config: Config, loaders: tuple[str, ...]) -> None:
    """Check that annotations and image folders are where the config says.

    Args:
        config: The whole config.
        loaders: Names of the data loaders that the run will use.

    Raises:
        PreflightError: One is missing.
    """
    for loader in loaders:
        if not config.get(loader):
            continue
        for dataset in _datasets(config[loader]['dataset']):
            root = dataset.get('data_root') or ''
            for path in (dataset.get('ann_file'), *(dataset.get('data_prefix') or {}).values()):
                if not path or '://' in f'{root}{path}':
                    continue
                path = Path(root, path)
                if not path.exists() or (path.is_dir() and not any(path.iterdir())):
                    raise PreflightError(_missing_data(path, root, loader))


def _missing_data(path: Path, root: str, loader: str) -> str:
    state = 'is empty' if path.exists() else 'is not there'
    if 'shapes' in Path(root).name:
        remedy = f'Write it with: python tools/make_shapes.py {root}'
    else:
        remedy = (
            'Put COCO there (annotations/, train2017/, val2017/), or say where it is: COCO_ROOT=/path/to/coco python '
            f'tools/train.py ... (or --cfg-options {loader}.dataset.data_root=...). `make demo` needs no data set.'
        )
    return f'the data set of {loader} cannot be found: {path} {state}. {remedy}'


def _pretrained(config: object) -> Iterator[str]:
    """The checkpoints that ``init_cfg`` entries name, anywhere in a model's config."""
    if isinstance(config, dict):
        init = config.get('init_cfg')
        for entry in init if isinstance(init, list | tuple) else [init]:
            if isinstance(entry, dict) and entry.get('checkpoint'):
                yield entry['checkpoint']
        for value in config.values():
            yield from _pretrained(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _pretrained(value)


def check_weights(config: Config) -> None:
    """Check that the weights which training starts from are there; those with an address are fetched now.

    Raises:
        PreflightError: A file is missing, or cannot be fetched.
    """
    for source in dict.fromkeys([*_pretrained(config.model), config.get('load_from')]):
        if not source:
            continue
        if source.startswith(('http://', 'https://')):
            _fetch(source)
        elif '://' not in source and not Path(source).expanduser().is_file():
            raise PreflightError(
                f'there are no weights at {source}. Give the path of a checkpoint, or train without: {_NO_WEIGHTS}'
            )


def _fetch(url: str) -> None:
    # Where mmengine looks, by way of torch.hub.
    target = Path(torch.hub.get_dir()) / 'checkpoints' / Path(urlparse(url).path).name
    # Only one process of a machine fetches; mmengine lets the others wait for it.
    if target.is_file() or any(os.environ.get(name, '0') != '0' for name in ('LOCAL_RANK', 'SLURM_LOCALID')):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(target))
    except OSError as error:
        raise PreflightError(
            f'the weights {url} cannot be fetched ({error}). Fetch them where there is a network and put them at '
            f'{target}, or train without: {_NO_WEIGHTS}'
        ) from error


def build_model(config: Config) -> nn.Module:
    """Build the model of a config, without its pre-trained weights.

    Raises:
        PreflightError: The config asks for a model that cannot be built.
    """
    init_default_scope(config.get('default_scope') or 'mmdet')
    try:
        return MODELS.build(config.model)
    except Exception as error:
        # The registry wraps what a constructor raises, and puts its own words before it.
        raise PreflightError(f'the model of {config.filename} cannot be built: {error}') from error


def check_checkpoint(config: Config, path: str) -> None:
    """Check that a checkpoint holds just the model of a config.

    Raises:
        PreflightError: The file is missing, cannot be read, or is of another model.
    """
    if '://' in path:
        return
    if not Path(path).expanduser().is_file():
        raise PreflightError(f'there is no checkpoint {path}. Training writes them to work_dirs/, named epoch_N.pth')
    try:
        checkpoint = read_checkpoint(path)
    except ValueError as error:
        raise PreflightError(str(error)) from error
    state = checkpoint_state(checkpoint)
    own = build_model(config).state_dict()
    problems = {
        'are missing in it': [key for key in own if key not in state],
        'have no place in the model': [key for key in state if key not in own],
        'have another shape': [key for key in own if key in state and own[key].shape != state[key].shape],
    }
    if any(problems.values()):
        found = '; '.join(
            f'{len(keys)} tensors {what} ({", ".join(keys[:2])}{", ..." if len(keys) > 2 else ""})'
            for what, keys in problems.items()
            if keys
        )
        raise PreflightError(
            f'{path} is a checkpoint of another model than {config.filename}: {found}. Use it with the config that it '
            'was trained with; a copy lies in its work dir.'
        )
