"""Checks of data sets. MMDetection reads them before the run, and the result is compared with each file."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch.utils.data import Dataset

from mmgrc.datasets.images import evenly_spaced, header_size, is_truncated_jpeg

from ..classes import registered_class
from ..error import InputError, as_input_error, first_few
from .coco_file import count_beyond, index_coco, label_problems, read_coco_file, require_masks, why_left_out

__all__ = [
    'CocoFiles',
    'build_loader',
    'check_datasets',
    'dataset_configs',
    'head_classes',
    'is_local',
    'read_datasets',
]

# This many images of a file are opened, evenly spaced. That finds systematic faults, and takes a second for COCO.
_HEADERS = 2000
# This many images whose headers do not fit the file are decoded to see how they are loaded.
_DECODED = 5


def dataset_configs(config: Mapping) -> Iterator[dict]:
    """The data sets below a ``dataset`` entry, without their wrappers."""
    if 'dataset' in config:
        yield from dataset_configs(config['dataset'])
    elif 'datasets' in config:
        for inner in config['datasets']:
            yield from dataset_configs(inner)
    else:
        yield config


def is_local(path: str, backend_args: Mapping | None) -> bool:
    """Whether a file is local, not behind one of MMEngine's other backends."""
    return '://' not in path and (backend_args or {}).get('backend', 'local') == 'local'


def check_datasets(config: Config, loaders: Sequence[str]) -> None:
    """Check that the annotations and image folders of the config exist.

    Args:
        config: The whole config.
        loaders: Names of the data loaders that the run will use.

    Raises:
        InputError: One is missing.
    """
    for loader in loaders:
        if not config.get(loader):
            continue
        for dataset in dataset_configs(config[loader]['dataset']):
            root = dataset.get('data_root') or ''
            for path in (dataset.get('ann_file'), *(dataset.get('data_prefix') or {}).values()):
                if not path or '://' in f'{root}{path}' or not isinstance(path, str):
                    continue
                path = Path(root, path)
                try:
                    lacking = not path.exists() or (path.is_dir() and not any(path.iterdir()))
                except PermissionError as error:
                    raise InputError(f'the data set of {loader} cannot be read: {path}: {error.strerror}') from error
                if lacking:
                    raise InputError(_missing_data(path, root, loader))


def _missing_data(path: Path, root: str, loader: str) -> str:
    state = 'is empty' if path.exists() else 'is not there'
    if 'shapes' in Path(root).name:
        remedy = f'Write it with: python tools/make_shapes.py {root}'
    else:
        remedy = (
            'Put COCO there (annotations/, train2017/, val2017/), or set COCO_ROOT: COCO_ROOT=/path/to/coco python '
            f'tools/train.py ... (or --cfg-options {loader}.dataset.data_root=...). `make demo` needs no data set.'
        )
    return f'the data set of {loader} cannot be found: {path} {state}. {remedy}'


class CocoFiles:
    """Annotation files, each read once. Loaders and evaluators share them."""

    def __init__(self) -> None:
        self._files: dict[Path, COCO] = {}
        self.labels: dict[str, tuple[tuple[str, ...], str]] = {}
        """For each reader, such as ``'val_evaluator'``, the names of its labels and their file."""

    def read(self, path: str | Path) -> COCO:
        """Read a file, see :func:`~mmgrc.runs.preflight.coco_file.read_coco_file`.

        Raises:
            InputError: The file cannot be used.
        """
        key = Path(path).resolve()
        if key not in self._files:
            try:
                self._files[key] = index_coco(read_coco_file(path))
            except ValueError as error:
                raise InputError(str(error)) from error
        return self._files[key]

    def compare_labels(self, reader: str, path: str, classes: Sequence[str]) -> list[str]:
        """Compare the labels from a reader of a file with the classes, and with the labels from earlier readers.

        Returns:
            Warnings about the labels.

        Raises:
            InputError: A label is invalid, or means another class than for another reader.
        """
        try:
            names, problem = label_problems(self.read(path), classes)
        except ValueError as error:
            raise InputError(f'{path}, of {reader}: {error}') from error
        for other, (other_names, other_path) in self.labels.items():
            if names != other_names:
                raise InputError(
                    f'the categories of {path} ({reader}) and of {other_path} ({other}) are in different orders: '
                    f'{first_few(names)} against {first_few(other_names)}. MMDetection numbers them in the order of '
                    "the file, so that a label would mean another class in each. Give the files' lists of categories "
                    'the same order.'
                )
        self.labels[reader] = names, str(path)
        return [problem] if problem else []


class _Sets(NamedTuple):
    """Information about the data sets of one loader."""

    loader: str
    files: CocoFiles
    read: list[BaseDataset]
    """Those that are plain COCO."""
    warnings: list[str]
    objects: list[int]
    """The number of objects that MMDetection found in each."""


class _StandIn(Dataset):
    """A placeholder for a data set that is not read before the run."""

    def __len__(self) -> int:
        return 1


def read_datasets(config: Config, loaders: Sequence[str], files: CocoFiles) -> dict[str, Dataset | None]:
    """Let MMDetection read the data sets of a run, compare them with their files, and build the loaders.

    Plain COCO is checked strictly. A data set with a custom reader is left to that reader. One warning for each file
    lists what MMDetection leaves out, merges, or reads under another name. One process of a machine reads the files.

    Args:
        config: The whole config.
        loaders: Names of the data loaders that the run will use.
        files: Stores the files that were read.

    Returns:
        The data set of each loader. None if it has a custom reader.

    Raises:
        InputError: The data cannot be used, or a loader cannot be built.
    """
    init_default_scope(config.get('default_scope') or 'mmdet')
    datasets = {}
    for loader in loaders:
        if not config.get(loader):
            continue
        sets = _Sets(loader, files, [], [], [])
        datasets[loader] = _build_dataset(config[loader]['dataset'], config, sets)
        for warning in sets.warnings:
            print_log(warning, logger='current', level=logging.WARNING)
        _require_objects(datasets[loader], sets)
        build_loader(config[loader], datasets[loader], loader)
    return datasets


def _build_dataset(config: dict, whole: Config, sets: _Sets) -> Dataset | None:
    """The data set of an entry, read. None if a part of it has a custom reader."""
    wrapped = next((key for key in ('dataset', 'datasets') if key in config), None)
    if wrapped is None:
        return _read_coco(config, whole, sets)
    entries = [config['dataset']] if wrapped == 'dataset' else config['datasets']
    inner = [_build_dataset(entry, whole, sets) for entry in entries]
    if None in inner:
        return None
    with as_input_error(f'the data set of {sets.loader} cannot be built'):
        return DATASETS.build({**config, wrapped: inner[0] if wrapped == 'dataset' else inner})


def _read_coco(config: dict, whole: Config, sets: _Sets) -> CocoDataset | None:
    """Let MMDetection read a data set in COCO's format, and compare it with its file."""
    kind = registered_class(config, DATASETS)
    if kind is None or not _reads_plain_coco(kind):
        return None
    with as_input_error(f'the data set of {sets.loader} cannot be built'):
        dataset = DATASETS.build({**config, 'lazy_init': True})
    if not dataset.ann_file or not is_local(dataset.ann_file, dataset.backend_args):
        return None
    path, classes = dataset.ann_file, _classes(dataset, sets.loader)
    coco = sets.files.read(path)
    _check_heads(whole, classes, sets.loader)
    problems = sets.files.compare_labels(sets.loader, path, classes)
    training, masks = sets.loader.startswith('train'), _loads_masks(dataset)
    if masks:
        try:
            use = 'train' if training else 'load'
            require_masks(path, coco.dataset, coco.get_cat_ids(cat_names=classes), use)
        except ValueError as error:
            raise InputError(str(error)) from error
    # MMDetection's own reader, on the file that has been read already.
    dataset.COCOAPI = lambda _: coco
    with as_input_error(f'MMDetection cannot read {path}, of {sets.loader}'):
        found = dataset.load_data_list()
        dataset.load_data_list = lambda: found
        dataset.serialize_data = False
        dataset.full_init()
    problems += _left_out(dataset, found, coco, classes, masks and training)
    beyond, count = count_beyond(coco), len(coco.anns)
    if beyond > count / 10:
        problems.append(
            f'{beyond} of its {count} boxes reach beyond their images. Are they corners? A bbox of COCO is left, top, '
            'width and height'
        )
    problems += _check_images(dataset, found, path)
    if problems:
        sets.warnings.append(f'{path}: {"; ".join(problems)}')
    sets.read.append(dataset)
    sets.objects.append(sum(len(info['instances']) for info in found))
    return dataset


def _reads_plain_coco(kind: type) -> bool:
    own = ('load_data_list', 'parse_data_info')
    return issubclass(kind, CocoDataset) and all(getattr(kind, name) is getattr(CocoDataset, name) for name in own)


def _classes(dataset: BaseDataset, loader: str) -> Sequence[str]:
    classes = dataset.metainfo.get('classes')
    if isinstance(classes, str):
        raise InputError(
            f'metainfo.classes={classes!r} of the data set of {loader} is a string, whose letters would be the '
            f'classes. Write a tuple, with a comma: classes=({classes!r},)'
        )
    if not isinstance(classes, Sequence) or not classes or not all(isinstance(name, str) for name in classes):
        raise InputError(
            f'metainfo.classes={classes!r} of the data set of {loader}: give a tuple of names, as in the categories of '
            'its annotations'
        )
    if doubled := [name for name, count in Counter(classes).items() if count > 1]:
        raise InputError(f'metainfo.classes of the data set of {loader} names {doubled[0]!r} twice')
    return tuple(classes)


def _loads_masks(dataset: BaseDataset) -> bool:
    return any(getattr(step, 'with_mask', False) for step in dataset.pipeline.transforms)


def _check_heads(config: Config, classes: Sequence[str], loader: str) -> None:
    for name, value in head_classes(config.model):
        if isinstance(value, int) and value < len(classes):
            raise InputError(
                f'{name}={value}, but the data set of {loader} has {len(classes)} classes ({first_few(classes)}). Set '
                f'num_classes of the heads to {len(classes)}'
            )


def head_classes(config: object, name: str = 'model') -> Iterator[tuple[str, int]]:
    """The name and value of ``num_classes`` of each box and mask head."""
    if isinstance(config, dict):
        if 'num_classes' in config and name.rsplit('.', 1)[-1].rstrip('.0123456789') in ('bbox_head', 'mask_head'):
            yield f'{name}.num_classes', config['num_classes']
        for key, value in config.items():
            yield from head_classes(value, f'{name}.{key}')
    elif isinstance(config, list | tuple):
        for value in config:
            yield from head_classes(value, name)


def _left_out(
    dataset: CocoDataset, found: Sequence[dict], coco: COCO, classes: Sequence[str], masks: bool
) -> list[str]:
    """Images and annotations of a file that MMDetection's reader should have taken, but did not."""
    images, annotations = coco.dataset['images'], coco.dataset.get('annotations', [])
    problems = []
    if len(images) != len(found):
        ids = [key for key, count in Counter(image['id'] for image in images).items() if count > 1]
        problems.append(f'{len(images) - len(found)} images are lost, since others have the same id ({first_few(ids)})')
    names = set(classes)
    # Left out on purpose: objects of categories that the config does not name, and those marked as ignored.
    unwanted = {key for key, category in coco.cats.items() if category['name'] not in names}
    kinds: dict[str, list] = {}
    for annotation in annotations:
        if annotation['image_id'] not in coco.imgs:
            kinds.setdefault(why_left_out(annotation, None, coco.cats, masks), []).append(annotation['id'])
    for info in found:
        image, objects = coco.imgs[info['img_id']], coco.imgToAnns[info['img_id']]
        whole = len(objects) == len(info['instances'])
        if whole and not masks:
            continue
        for annotation in objects:
            if annotation['category_id'] in unwanted or annotation.get('ignore'):
                continue
            reason = why_left_out(annotation, image, coco.cats, masks)
            if reason or not (whole or _takes(dataset, annotation, image)):
                kinds.setdefault(reason or "that MMDetection's reader does not take", []).append(annotation['id'])
    if kinds:
        counted = ', '.join(f'{len(ids)} {kind} (annotation {first_few(ids)})' for kind, ids in kinds.items())
        problems.append(f'some of its {len(annotations)} annotations are left out: {counted}')
    return problems


def _takes(dataset: CocoDataset, annotation: dict, image: dict) -> bool:
    return bool(dataset.parse_data_info({'raw_ann_info': [annotation], 'raw_img_info': image})['instances'])


def _check_images(dataset: CocoDataset, found: Sequence[dict], path: str) -> list[str]:
    """Compare the images with the file.

    Returns:
        A warning if images have another size than the file says.

    Raises:
        InputError: An image is missing, or cannot be read.
    """
    if any('://' in info['img_path'] for info in found[:1]):
        return []
    _require_images(dataset, found, path)
    loader = next((step for step in dataset.pipeline.transforms if isinstance(step, LoadImageFromFile)), None)
    if loader is None:
        return []
    chosen = evenly_spaced(found, _HEADERS)
    unread, other, decoded, suffixes = [], [], 0, set()
    for info in chosen:
        image, stated = info['img_path'], (info['height'], info['width'])
        size, suffix = header_size(image), os.path.splitext(image)[1]
        # One of each kind is decoded in any case: OpenCV cannot read all that have a header.
        if size == stated and suffix in suffixes and not is_truncated_jpeg(image):
            continue
        if size in (None, stated) or decoded < _DECODED:
            # The header is not enough: the loaded image decides.
            decoded += size not in (None, stated)
            size = _loaded_size(loader, image)
        suffixes.add(suffix)
        if size is None:
            unread.append(f'{image}{_why_unreadable(image)}')
        elif size != stated:
            other.append((image, stated, size))
    if unread and not loader.ignore_empty:
        raise InputError(
            f'{len(unread)} images of {path} cannot be decoded: {first_few(unread, 3)}. Replace them, or remove them '
            'from the annotations.'
        )
    if not other:
        return []
    name, stated, size = other[0]
    of = 'its images' if len(chosen) == len(found) else f'{len(chosen)} of its images, which were checked,'
    return [
        f'{len(other)} of {of} have another size than the file says: {Path(name).name} is loaded with '
        f'{size[0]} rows and {size[1]} columns, the file says height {stated[0]} and width {stated[1]}. Does an EXIF '
        'entry rotate it, or are the two swapped? Masks do not fit such an image, and mask AP would be 0.'
    ]


def _require_images(dataset: CocoDataset, found: Sequence[dict], path: str) -> None:
    # List each folder once instead of testing each file. pathlib would take seconds for COCO's paths.
    paths = [os.path.split(info['img_path']) for info in found]
    try:
        listings = {
            parent: set(os.listdir(parent or '.')) for parent in {p for p, _ in paths} if os.path.isdir(parent or '.')
        }
    except PermissionError as error:
        raise InputError(f'the images of {path} cannot be read: {error.filename}: {error.strerror}') from error
    absent = [os.path.join(parent, name) for parent, name in paths if name not in listings.get(parent, ())]
    if absent:
        raise InputError(
            f'{len(absent)} of the {len(paths)} images of {path} are missing: {first_few(absent, 3)}. The '
            f'config looks for them in {dataset.data_prefix.get("img") or "the working directory"}.'
        )


def _why_unreadable(path: str) -> str:
    """What the file system says about a file that cannot be loaded, if that is the reason."""
    try:
        with open(path, 'rb'):
            return ''
    except OSError as error:
        return f' ({error.strerror})'


def _loaded_size(loader: LoadImageFromFile, path: str) -> tuple[int, int] | None:
    """Rows and columns of the image as MMDetection loads it. None if it cannot load it."""
    try:
        results = loader({'img_path': path})
    except Exception:
        # Errors of OpenCV and of the file system, and mmcv's assertion.
        return None
    return None if results is None else tuple(results['ori_shape'][:2])


def _require_objects(dataset: Dataset | None, sets: _Sets) -> None:
    """Refuse a training without any object, whatever wrappers its data sets have.

    Raises:
        InputError: There is no object.
    """
    # A data set with a custom reader may have objects.
    if dataset is None or not sets.loader.startswith('train') or (len(dataset) and any(sets.objects)):
        return
    files = first_few(list(dict.fromkeys(one.ann_file for one in sets.read)), 3)
    raise InputError(
        f'the data set of {sets.loader} is empty: {files} has no usable annotation of its classes '
        f'({first_few(sets.read[0].metainfo["classes"]) if sets.read else ""})'
    )


def build_loader(config: dict, dataset: Dataset | None, loader: str) -> None:
    """Build a loader as the run will, without starting it.

    Args:
        config: Its entry in the config.
        dataset: Its data set, already read. None if it has a custom reader.
        loader: Its name in the config.

    Raises:
        InputError: It cannot be built.
    """
    if config.get('persistent_workers') and not config.get('num_workers'):
        raise InputError(
            f'{loader}: num_workers={config.get("num_workers", 0)} with persistent_workers=True cannot work. Add to '
            f'--cfg-options: {loader}.persistent_workers=False'
        )
    config = dict(config)
    if dataset is None:
        config = {k: v for k, v in config.items() if k not in ('batch_sampler', 'num_batch_per_epoch')}
        config.update(dataset=_StandIn(), sampler={'type': 'DefaultSampler', 'shuffle': False})
    else:
        # The builder copies its config, and would copy every annotation.
        dataset.__deepcopy__ = lambda _: dataset
        config['dataset'] = dataset
    try:
        with as_input_error(f'{loader} cannot be built'):
            Runner.build_dataloader(config, seed=0)
    finally:
        # Otherwise it would be a reference cycle, and stay in memory.
        vars(config['dataset']).pop('__deepcopy__', None)
