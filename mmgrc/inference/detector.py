"""Run detectors on individual images: load the detector, find the images, and write the results."""

from __future__ import annotations

import copy
import difflib
import glob
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import DATASETS
from mmengine.config import Config
from pycocotools import mask as coco_mask
from torch import nn

from mmgrc.datasets.images import IMAGE_SUFFIXES, files_below, read_image
from mmgrc.runs.config import get_test_pipeline
from mmgrc.runs.error import InputError, first_few
from mmgrc.runs.preflight import check_checkpoint
from mmgrc.runs.preflight.datasets import dataset_configs
from mmgrc.visualization.detections import Drawn, draw_detections
from mmgrc.visualization.predictions import class_colours

from .detections_file import DetectionsFile

__all__ = [
    'Found',
    'describe_failure',
    'detect',
    'find_images',
    'find_objects',
    'load_detector',
    'select_classes',
]

VIDEO_SUFFIXES = ('.mp4', '.m4v', '.mov', '.avi', '.mkv', '.webm', '.mpg', '.mpeg', '.wmv', '.flv', '.ts', '.3gp')


class Found(NamedTuple):
    """An object that a detector found."""

    annotation: dict
    """As in COCO's format, with a ``score``, without ids."""
    mask: np.ndarray | None
    """(H, W), true on the object. None: the detector has no masks."""

    def drawn(self) -> Drawn:
        """The object, to draw."""
        known = self.annotation
        return Drawn(known['category_id'] - 1, known['bbox'], self.mask, known['score'])


def load_detector(config: Config, checkpoint: str, device: str | None = None) -> nn.Module:
    """Build a detector with the weights, classes and palette of a checkpoint, ready for images.

    Args:
        config: Config that the checkpoint was trained with.
        checkpoint: Checkpoint file. If it does not name its classes, they are those of the config's test set.
        device: ``'cpu'``, ``'cuda:0'``, ... None: a GPU if there is one.

    Raises:
        InputError: The checkpoint cannot be read or belongs to another model, the config has no test pipeline, or there
            is no such device.
    """
    if device is None:
        device = 'cuda:0' if torch.cuda.is_available() else 'cpu'
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f'the device {device!r} cannot be used: {str(error).splitlines()[0]}') from error
    pipeline = get_test_pipeline(config)
    content = check_checkpoint(config, checkpoint)
    # MMDetection builds the test set for its palette, without its files. A wrapper would read those of its data sets.
    config = copy.deepcopy(config)
    dataset = {**next(dataset_configs(config.test_dataloader.dataset)), 'pipeline': pipeline}
    config.test_dataloader.dataset = dataset
    meta = (content or {}).get('meta') or {}
    unnamed = content is not None and 'classes' not in map(str.lower, (*meta, *(meta.get('dataset_meta') or ())))
    # To a checkpoint without class names MMDetection gives those of COCO, with a warning that it lets no filter hide.
    with warnings.catch_warnings(record=unnamed) as hidden:
        model = init_detector(config, checkpoint, device=device)
    if unnamed:
        model.dataset_meta['classes'] = DATASETS.build({**dataset, 'lazy_init': True}).metainfo['classes']
    for warning in hidden or []:
        if 'class names are not saved' not in str(warning.message):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return model


def find_images(source: str, out_dir: str | Path | None = None) -> list[Path]:
    """Find the images of a path, a folder or a pattern, sorted.

    Args:
        source: A file with any name; a folder, which is searched recursively for files with an image suffix, also
            through links to folders; or a pattern with ``*``, ``?`` or ``**``.
        out_dir: Where drawings will be written. Those of an earlier call are not among the images of a folder or a
            pattern.

    Raises:
        InputError: There are no images, there are videos among them, or a drawing would replace an image.
    """
    path = Path(source).expanduser()
    files = [path] if path.is_file() else _search(path, out_dir)
    if out_dir is not None:
        images = {p.resolve() for p in files}
        for drawing in (Path(out_dir, 'drawings', name) for name in _drawing_names(files).values()):
            if drawing.resolve() in images:
                raise InputError(
                    f'{drawing} is one of the images, and a drawing would replace it: choose another folder with '
                    '--out-dir'
                )
    return files


def _search(path: Path, out_dir: str | Path | None) -> list[Path]:
    """The images in a folder or of a pattern, see :func:`find_images`."""
    if path.is_dir():
        files = files_below(path)
    else:
        files = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
    drawings = None if out_dir is None else Path(out_dir, 'drawings').resolve()
    # They may be the images that were asked for.
    if drawings is not None and drawings != path.resolve():
        files = [p for p in files if drawings not in p.resolve().parents]
    videos = [p for p in files if p.suffix.lower() in VIDEO_SUFFIXES]
    if videos:
        raise InputError(
            f'{path} has videos ({first_few(videos)}): give each video in a command of its own, by its path, and '
            "images without videos, such as by the quoted pattern 'FOLDER/*.jpg'"
        )
    if path.is_dir():
        files = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
        if not files:
            raise InputError(f'the folder {path} has no images (looked for {", ".join(IMAGE_SUFFIXES)})')
    elif not files:
        raise InputError(f'there is no image, no video, no folder and no match of a pattern at {path}')
    return files


def select_classes(model: nn.Module, names: Sequence[str] | None) -> list[int]:
    """Return the labels of classes.

    Args:
        model: What :func:`load_detector` gave.
        names: Names of classes. None means all.

    Raises:
        InputError: The detector has no class of a name.
    """
    classes = list(model.dataset_meta['classes'])
    if names is None:
        return list(range(len(classes)))
    for name in names:
        if name not in classes:
            near = difflib.get_close_matches(name, classes, n=3) or classes
            raise InputError(f'the detector has no class {name!r}; did you mean one of these? {", ".join(near)}')
    return [classes.index(name) for name in names]


def detect(
    model: nn.Module, images: Sequence[Path], out_dir: str | Path, score_thr: float = 0.3, labels: Sequence[int] = ()
) -> Iterator[tuple[Path, str | None]]:
    """Detect objects on images; write a drawing of each and one file of all detections.

    The drawings are ``OUT_DIR/drawings/NAME.jpg``. ``OUT_DIR/detections.json`` is a data set in COCO's format whose
    annotations have a ``score``. It is written at the end, or when the generator is closed early.

    Args:
        model: What :func:`load_detector` gave.
        images: Image files.
        out_dir: Folder to write to, created if it is missing.
        score_thr: Minimum score of a detection, in [0, 1].
        labels: The labels to keep.

    Yields:
        Each image after it is processed, with None or the reason why it failed. If an image could not be drawn, the
        file still has its detections.

    Raises:
        OSError: The folder or the file cannot be written.
    """
    out_dir = Path(out_dir)
    drawings = out_dir / 'drawings'
    drawings.mkdir(parents=True, exist_ok=True)
    classes = model.dataset_meta['classes']
    palette = class_colours(model.dataset_meta['palette'], len(classes))
    names = _drawing_names(images)
    with DetectionsFile(out_dir / 'detections.json', classes) as file:
        for path in images:
            problem = None
            try:
                image = read_image(path)
                found = find_objects(model, image, score_thr, labels)
            except Exception as error:
                # Whatever fails for one image, the others are still processed.
                problem = describe_failure(path, error)
            if problem:
                free_memory()
                yield path, problem
                continue
            record = {'file_name': str(path), 'height': image.shape[0], 'width': image.shape[1]}
            file.add(record, [annotation for annotation, _ in found])
            try:
                objects = [one.drawn() for one in found]
                draw_detections(image[..., ::-1], objects, classes, palette, drawings / names[path])
            except Exception as error:
                (drawings / names[path]).unlink(missing_ok=True)
                problem = f'{describe_failure(path, error)}; it is not drawn, but its detections are stored'
            yield path, problem


def find_objects(model: nn.Module, image: np.ndarray, score_thr: float, labels: Sequence[int]) -> list[Found]:
    """Detect objects on one image.

    Args:
        model: What :func:`load_detector` gave.
        image: (H, W, 3), BGR, uint8.
        score_thr: Minimum score of a detection, in [0, 1].
        labels: The labels to keep.
    """
    found = inference_detector(model, image).pred_instances.cpu()
    found = found[(found.scores >= score_thr) & torch.isin(found.labels, torch.tensor(list(labels)))]
    boxes = found.bboxes.double().numpy()
    masks = found.masks.numpy() if 'masks' in found else [None] * len(boxes)
    objects = []
    for (left, top, right, bottom), label, score, mask in zip(boxes, found.labels, found.scores, masks, strict=True):
        annotation = {
            'category_id': int(label) + 1,
            'iscrowd': 0,
            'bbox': [round(float(v), 2) for v in (left, top, right - left, bottom - top)],
            'area': round(float((right - left) * (bottom - top)), 2),
            'score': round(float(score), 5),
        }
        if mask is not None:
            encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            annotation['segmentation'] = {'size': encoded['size'], 'counts': encoded['counts'].decode('ascii')}
            annotation['area'] = int(mask.sum())
        objects.append(Found(annotation, mask))
    return objects


def describe_failure(path: str | Path, error: Exception) -> str:
    """Describe why an image could not be processed, in one line that names it.

    Args:
        path: The image.
        error: An error of :func:`~mmgrc.datasets.images.read_image`, whose message is used as it is, or of later code.
            For the latter the description includes the position in the code.
    """
    message = ' '.join(str(error).split())
    if isinstance(error, ValueError) and str(path) in message:
        return message
    kind = type(error)
    name = kind.__name__ if kind.__module__ == 'builtins' else f'{kind.__module__}.{kind.__name__}'
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f'{path}: {name}: {message[:500]} ({Path(place.filename).name}, line {place.lineno})'


def free_memory() -> None:
    """Free the memory of the image that did not fit, for the images after it."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _drawing_names(images: Sequence[Path]) -> dict[Path, str]:
    """A unique file name for the drawing of each image."""
    names: dict[Path, str] = {}
    used: set[str] = set()
    for path in images:
        name, number = f'{path.stem}.jpg', 1
        while name in used:
            number += 1
            name = f'{path.stem}_{number}.jpg'
        used.add(name)
        names[path] = name
    return names
