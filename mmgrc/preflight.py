"""Checks that run before training and testing: bad input ends here, with one message that says what to do."""

from __future__ import annotations

import difflib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlparse

import torch
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.fileio import list_from_file
from mmengine.logging import print_log
from mmengine.registry import init_default_scope
from torch import nn

from .checkpoint import last_good_checkpoint, read_checkpoint
from .config import CONFIG_DIR, config_path
from .datasets.coco_file import inspect_coco_file
from .models.convert import checkpoint_state

__all__ = [
    'PreflightError',
    'build_model',
    'check_annotations',
    'check_checkpoint',
    'check_datasets',
    'check_resume',
    'check_weights',
    'check_work_dir',
    'find_empty_images',
    'load_config',
]

_NO_WEIGHTS = '--cfg-options model.backbone.init_cfg=None'


class PreflightError(Exception):
    """Input with which a run cannot work. The message names it and says what to do."""


def load_config(path: str, options: dict | None = None) -> Config:
    """Read a config and merge the command line's options into it.

    Args:
        path: A file, or ``mmgrc::NAME``, or ``mmdet::FOLDER/NAME``.
        options: What ``--cfg-options`` gave.

    Raises:
        PreflightError: There is no such config, or it cannot be read.
    """
    try:
        resolved = Path(config_path(path))
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
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


def check_annotations(config: Config, loaders: tuple[str, ...]) -> None:
    """Check the content of annotation files in COCO's format, and the classes of data set and heads.

    What MMDetection leaves out without a word is counted in a warning. A file of COCO's size takes some seconds; one
    process of a machine reads it.

    Args:
        config: The whole config.
        loaders: Names of the data loaders that the run will use.

    Raises:
        PreflightError: Nothing can be trained or tested with the data.
    """
    if not _is_first_of_machine():
        return
    init_default_scope(config.get('default_scope') or 'mmdet')
    for loader in loaders:
        for dataset in _datasets(config[loader]['dataset']) if config.get(loader) else ():
            kind = DATASETS.get(dataset['type'])
            path = Path(dataset.get('data_root') or '', dataset.get('ann_file') or '')
            if kind is None or not issubclass(kind, CocoDataset) or not path.is_file():
                continue
            classes = _classes(dataset, kind)
            _check_heads(config, classes, loader)
            masks = any(step.get('with_mask') for step in dataset.get('pipeline') or ()) and loader.startswith('train')
            try:
                report = inspect_coco_file(path, classes, masks)
            except ValueError as error:
                raise PreflightError(f'the data set of {loader}: {error}') from error
            if report.problems:
                print_log(
                    f'{path}: some annotations are left out: {"; ".join(report.problems)}',
                    logger='current',
                    level=logging.WARNING,
                )
            if not report.usable and not dataset.get('test_mode'):
                raise PreflightError(
                    f'the data set of {loader} is empty: {path} has no usable annotation of its classes '
                    f'({", ".join(classes[:5])}{", ..." if len(classes) > 5 else ""})'
                )
            _check_images(dataset, report.image_names, path)


def _is_first_of_machine() -> bool:
    return all(os.environ.get(name, '0') == '0' for name in ('LOCAL_RANK', 'SLURM_LOCALID'))


def _classes(dataset: dict, kind: type[CocoDataset]) -> Sequence[str]:
    classes = (dataset.get('metainfo') or {}).get('classes', kind.METAINFO['classes'])
    return list_from_file(classes) if isinstance(classes, str) else classes


def _check_heads(config: Config, classes: Sequence[str], loader: str) -> None:
    for name, value in _head_classes(config.model, 'model'):
        if value < len(classes):
            raise PreflightError(
                f'{name}={value}, but the data set of {loader} has {len(classes)} classes ({", ".join(classes[:5])}'
                f'{", ..." if len(classes) > 5 else ""}). Set num_classes of the heads to {len(classes)}'
            )


def _head_classes(config: object, name: str) -> Iterator[tuple[str, int]]:
    """Name and value of ``num_classes`` of each box and mask head."""
    if isinstance(config, dict):
        if 'num_classes' in config and name.rsplit('.', 1)[-1].rstrip('.0123456789') in ('bbox_head', 'mask_head'):
            yield f'{name}.num_classes', config['num_classes']
        for key, value in config.items():
            yield from _head_classes(value, f'{name}.{key}')
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _head_classes(value, name)


def _image_folder(dataset: dict) -> Path:
    return Path(dataset.get('data_root') or '', (dataset.get('data_prefix') or {}).get('img') or '')


def _check_images(dataset: dict, names: list[str], annotations: Path) -> None:
    folder = _image_folder(dataset)
    if '://' in str(folder):
        return
    # One listing a folder, not a question a file.
    listings = {
        parent: set(os.listdir(parent)) for parent in {(folder / name).parent for name in names} if parent.is_dir()
    }
    absent = [name for name in names if Path(name).name not in listings.get((folder / name).parent, ())]
    if absent:
        raise PreflightError(
            f'{len(absent)} of the {len(names)} images of {annotations} are not in {folder}: {", ".join(absent[:3])}'
            f'{", ..." if len(absent) > 3 else ""}'
        )


def find_empty_images(config: Config, loaders: tuple[str, ...]) -> list[str]:
    """Images of no bytes, which is what an interrupted copy leaves, in the folders of the data sets."""
    folders = {
        _image_folder(d) for loader in loaders if config.get(loader) for d in _datasets(config[loader]['dataset'])
    }
    entries = (entry for folder in folders if folder.is_dir() for entry in os.scandir(folder))
    return sorted(entry.path for entry in entries if entry.is_file() and entry.stat().st_size == 0)


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
    if target.is_file() or not _is_first_of_machine():
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


def check_checkpoint(config: Config, path: str) -> dict | None:
    """Check that a checkpoint holds just the model of a config.

    Returns:
        What it holds; None where it has an address, and is read later.

    Raises:
        PreflightError: The file is missing, cannot be read, or is of another model.
    """
    if '://' in path:
        return None
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
            f'was trained with; a copy lies in its work dir.{_other_classes(config, checkpoint)}'
        )
    if other := _other_classes(config, checkpoint):
        print_log(f'{path}:{other}', logger='current', level=logging.WARNING)
    return checkpoint


def _other_classes(config: Config, checkpoint: dict) -> str:
    """What to say where a checkpoint was trained on other classes than the data sets have; nothing where it was not."""
    trained = ((checkpoint.get('meta') or {}).get('dataset_meta') or {}).get('classes')
    loader = config.get('train_dataloader') or config.get('test_dataloader')
    if not trained or not loader:
        return ''
    dataset = next(_datasets(loader['dataset']))
    kind = DATASETS.get(dataset['type'])
    if kind is None or not issubclass(kind, CocoDataset) or tuple(classes := _classes(dataset, kind)) == tuple(trained):
        return ''
    sets = [f'{len(n)} classes ({", ".join(n[:3])}{", ..." if len(n) > 3 else ""})' for n in (trained, classes)]
    return f' It was trained on {sets[0]}; the data here has {sets[1]}.'


def check_resume(config: Config, resume: str, work_dir: str) -> str:
    """Choose and check the checkpoint that a training goes on from.

    Args:
        config: The whole config.
        resume: A path, or ``'auto'`` for the last one of the work dir.
        work_dir: The work dir.

    Returns:
        The path where the last one had to be skipped for an older one; otherwise ``resume``.

    Raises:
        PreflightError: The file is missing, cannot be read, is of another model or of no training, or there are
            checkpoints and all of them are damaged.
    """
    path = resume
    if resume == 'auto':
        last, skipped = last_good_checkpoint(work_dir)
        if last is None and skipped:
            raise PreflightError(
                f'--resume: no checkpoint in {work_dir} can be read. {" ".join(skipped)} Remove them to start afresh, '
                'or name another checkpoint.'
            )
        if last is None:
            build_model(config)
            return resume
        for reason in skipped:
            print_log(f'--resume: skipped a checkpoint: {reason}', logger='current', level=logging.WARNING)
        pointer = Path(work_dir, 'last_checkpoint')
        named = pointer.read_text().strip() if pointer.is_file() else ''
        path = str(last)
        if path != named:
            print_log(f'--resume: going on from {path}', logger='current', level=logging.WARNING)
            resume = path
    checkpoint = check_checkpoint(config, path)
    lacking = [key for key in ('meta', 'optimizer', 'message_hub') if checkpoint is not None and key not in checkpoint]
    if lacking:
        raise PreflightError(
            f'{path} is not of a training that can go on: it has no {" and no ".join(lacking)}. To start from its '
            f'weights type: --cfg-options load_from={path} (without --resume)'
        )
    return resume


def check_work_dir(path: str) -> None:
    """Check that results can be written, by making the folder and a file in it; the last check before a run.

    Raises:
        PreflightError: They cannot.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b'0')
            file.flush()
    except OSError as error:
        raise PreflightError(
            f'the work dir {path} cannot be written to ({error.strerror}). Give another one with --work-dir'
        ) from error
