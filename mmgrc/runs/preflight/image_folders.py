"""Checks of data sets for classification: a folder of images for each class, as ImageNet is unpacked."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from mmgrc.datasets.images import evenly_spaced

from ..error import InputError, as_input_error, first_few
from ..quiet import quiet
from .datasets import build_loader, dataset_configs, is_local

__all__ = ['check_image_folders', 'read_image_folders']

_ARCHIVES = ('.tar', '.tar.gz', '.tgz', '.zip')
# This many images of a data set are decoded, evenly spaced. That finds systematic faults, and takes seconds.
_DECODED = 500
# A class with a smaller share of the median class's images is reported.
_SMALL_CLASS = 0.1


def check_image_folders(config: Config, loaders: Sequence[str]) -> None:
    """Check that the data sets of a classifier are there and unpacked, and have the classes of its head.

    Only the class folders are listed. A data set with an annotation file, without labels, or that is not local, is left
    to mmpretrain.

    Args:
        config: The whole config.
        loaders: Names of the data loaders that the run will use.

    Raises:
        InputError: A folder is missing, has archives instead of folders, or has other classes than the head or than
            another loader.
    """
    classes: dict[str, list[str]] = {}
    for loader, dataset in _datasets(config, loaders):
        if dataset.ann_file:
            if is_local(dataset.ann_file, None) and not Path(dataset.ann_file).is_file():
                raise InputError(_missing(Path(dataset.ann_file), loader))
        elif dataset.with_label and is_local(dataset.img_prefix, None):
            classes[loader] = _class_folders(Path(dataset.img_prefix), loader)
            _compare_with_model(config, dataset, len(classes[loader]), loader)
    for (first, names), (second, others) in itertools.pairwise(classes.items()):
        if differing := sorted(set(names) ^ set(others)):
            raise InputError(
                f'{first} and {second} have different class folders: {first_few(differing, 3)} is in one of them '
                'alone. mmpretrain numbers folders in the order of their names, so a label would mean another class in '
                'each'
            )


def _datasets(config: Config, loaders: Sequence[str]) -> Iterator[tuple[str, BaseDataset]]:
    """The loaders' data sets of mmpretrain's folder kind, not read yet."""
    from mmpretrain.datasets import CustomDataset

    init_default_scope(config.get('default_scope') or 'mmpretrain')
    for loader in loaders:
        for entry in dataset_configs(config[loader]['dataset']) if config.get(loader) else ():
            with DATASETS.switch_scope_and_registry(None) as registry:
                kind = registry.get(entry['type']) if isinstance(entry.get('type'), str) else entry.get('type')
            if isinstance(kind, type) and issubclass(kind, CustomDataset):
                with as_input_error(f'the data set of {loader} cannot be built'):
                    dataset = DATASETS.build({**entry, 'lazy_init': True})
                yield loader, dataset


def _missing(path: Path, loader: str) -> str:
    if 'shapes' in path.parent.name:
        remedy = f'Write it with: python tools/make_shapes.py {path.parent} --classification'
    else:
        remedy = (
            'Put ImageNet there (train/ and val/, each with a folder for each class), or set IMAGENET_ROOT: '
            'IMAGENET_ROOT=/path/to/imagenet python tools/pretrain.py ... '
            f'(or --cfg-options {loader}.dataset.data_root=...). `make demo-pretrain` needs no data set.'
        )
    state = 'is empty' if path.exists() else 'is not there'
    return f'the data set of {loader} cannot be found: {path} {state}. {remedy}'


def _class_folders(root: Path, loader: str) -> list[str]:
    """The names of the class folders."""
    entries = list(os.scandir(root)) if root.is_dir() else []
    if not entries:
        raise InputError(_missing(root, loader))
    folders = [entry.name for entry in entries if entry.is_dir()]
    files = sorted(entry.name for entry in entries if entry.is_file())
    if archives := [name for name in files if name.endswith(_ARCHIVES)]:
        raise InputError(
            f'{root}, of {loader}, has {len(archives)} archives beside {len(folders)} folders '
            f'({first_few(archives, 3)}): it is not completely unpacked. Unpack each into a folder of its name, and '
            f'remove it. For ImageNet: cd {root} && '
            'for f in *.tar; do mkdir -p "${f%.tar}" && tar -xf "$f" -C "${f%.tar}" && rm "$f"; done'
        )
    if not folders:
        raise InputError(
            f'{root}, of {loader}, has {len(files)} files ({first_few(files, 3)}) and no folder for each class. Sort '
            f"them into folders, as ImageNet's usual script valprep.sh does, or list their labels in "
            f'{root.parent}/meta/{root.name}.txt'
        )
    return folders


def _compare_with_model(config: Config, dataset: BaseDataset, count: int, loader: str) -> None:
    """Compare the number of class folders with what the config says."""
    where = 'model.data_preprocessor' if config.model.get('data_preprocessor') else 'data_preprocessor'
    numbers = {
        'model.head.num_classes': (config.model.get('head') or {}).get('num_classes'),
        f'{where}.num_classes': (config.model.get('data_preprocessor') or config.get('data_preprocessor') or {}).get(
            'num_classes'
        ),
    }
    wrong = {name: value for name, value in numbers.items() if value not in (None, count)}
    stated = [f'{name}={value}' for name, value in wrong.items()]
    options = [f'{name}={count}' for name in wrong]
    if dataset.CLASSES is not None and len(dataset.CLASSES) != count:
        stated.append(f'{loader}.dataset ({type(dataset).__name__}) names {len(dataset.CLASSES)} classes')
        options.append(f"'{loader}.dataset.metainfo.classes=[NAME,...]'")
    if stated:
        raise InputError(
            f'{dataset.img_prefix} has {count} class folders, but {" and ".join(stated)}. Is it completely unpacked? '
            f'If it really has {count} classes: --cfg-options {" ".join(options)}'
        )


def read_image_folders(config: Config, loaders: Sequence[str]) -> dict[str, int]:
    """Let mmpretrain read the data sets of a run, check labels and images, and build the loaders.

    One process of a machine reads them. A data set with another reader is left to it.

    Args:
        config: The whole config.
        loaders: Names of the data loaders that the run will use.

    Returns:
        The number of images by loader. Loaders whose data sets are wrapped, or are left to another reader, are absent.

    Raises:
        InputError: A class has no image, images cannot be decoded, or a loader cannot be built.
    """
    images = {}
    for loader, dataset in _datasets(config, loaders):
        with as_input_error(f'mmpretrain cannot read the data set of {loader}'), quiet():
            dataset.full_init()
        _check_labels(dataset, loader)
        _check_images(dataset, loader)
        if 'dataset' not in config[loader]['dataset']:
            build_loader(config[loader], dataset, loader)
            images[loader] = len(dataset)
    return images


def _check_labels(dataset: BaseDataset, loader: str) -> None:
    if not dataset.with_label:
        return
    names = dataset.CLASSES or ()
    labels = dataset.get_gt_labels()
    if len(labels) and not 0 <= labels.min() <= labels.max() < max(len(names), 1):
        raise InputError(
            f'{dataset.ann_file}, of {loader}, has labels from {labels.min()} to {labels.max()}, but there are '
            f'{len(names)} classes. Count labels from 0'
        )
    counts = np.bincount(labels, minlength=len(names))
    folders = sorted(dataset.folder_to_idx) if hasattr(dataset, 'folder_to_idx') else names
    if empty := [str(name) for name, count in zip(folders, counts, strict=True) if not count]:
        raise InputError(
            f'{len(empty)} of the {len(names)} classes of {dataset.img_prefix}, of {loader}, have no image: '
            f'{first_few(empty)}. Is it completely unpacked? Allowed are {", ".join(sorted(dataset.extensions))}'
        )
    median = float(np.median(counts))
    if few := [f'{name} ({n})' for name, n in zip(folders, counts, strict=True) if n < _SMALL_CLASS * median]:
        print_log(
            f'{dataset.img_prefix}, of {loader}: {len(few)} classes have fewer than a tenth of the images of the '
            f'median class ({median:g}): {first_few(few)}. Is it completely unpacked?',
            logger='current',
            level=logging.WARNING,
        )


def _check_images(dataset: BaseDataset, loader: str) -> None:
    """Decode some images.

    Raises:
        InputError: One of them cannot be decoded.
    """
    paths = [dataset.get_data_info(index)['img_path'] for index in evenly_spaced(range(len(dataset)), _DECODED)]
    bad = [f'{path} ({problem})' for path in paths if is_local(path, None) and (problem := _problem(path))]
    if bad:
        raise InputError(
            f'{len(bad)} of {len(paths)} images of {loader}, which were decoded, cannot be used: {first_few(bad, 3)}. '
            'Copy them again, or remove them.'
        )


def _problem(path: str) -> str | None:
    """Why an image cannot be decoded, or None."""
    try:
        if not os.path.getsize(path):
            return 'it is empty'
        with Image.open(path) as image:
            # Unlike OpenCV, Pillow refuses a truncated image.
            image.load()
    except FileNotFoundError:
        return 'it is missing'
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return str(error).removesuffix(f' {path!r}')
    return None
