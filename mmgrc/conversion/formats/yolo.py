"""YOLO: a text file beside each image, with a line for each object; classes and splits in a YAML file."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml

from mmgrc.datasets.images import IMAGE_SUFFIXES
from mmgrc.runs.error import InputError, first_few

from ..folder import Folder, read_text, split_of
from ..shapes import LabelledImage, Shape, Source, rectangle

__all__ = ['find_classes', 'read']

_NAMES = ('data', 'dataset')
_LISTS = ('classes.txt', 'obj.names')
_SPLITS = {'train': 'train', 'val': 'val', 'valid': 'val', 'test': 'test'}
# Fractions slightly beyond the border are common. Beyond these, they are no fractions.
_LEAST, _MOST = -1, 2


def find_classes(folder: Folder) -> Path | None:
    """Return the file of a YOLO data set that lists its classes. None if there is none.

    Raises:
        InputError: There are several, or it cannot be read.
    """
    found = [path for path in folder.with_suffix('.yaml', '.yml') if _has_names(folder, path)]
    if len(found) > 1:
        found = [path for path in found if path.stem in _NAMES] or found
    if len(found) > 1:
        raise InputError(
            f'{len(found)} files in {folder.root} list classes: {first_few([folder.name(p) for p in found])}. Give the '
            'right one instead of the folder'
        )
    if found:
        return found[0]
    lists = [path for name in _LISTS for path in folder.with_suffix('.txt', '.names') if path.name == name]
    return lists[0] if lists else None


def _has_names(folder: Folder, path: Path) -> bool:
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8-sig'))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        if path.stem in _NAMES or path == folder.file:
            raise InputError(f'{path} cannot be read as YAML: {" ".join(str(error).split())}') from error
        return False
    return isinstance(content, dict) and 'names' in content


def read(folder: Folder) -> Source:
    """Read detection and segmentation labels. A line is ``class x y width height``, or ``class x1 y1 x2 y2 ...``.

    Args:
        folder: A folder with ``data.yaml``, ``classes.txt`` or ``obj.names``; or its YAML file.

    Raises:
        InputError: There is no list of classes, or it is broken.
    """
    path = find_classes(folder)
    if path is None:
        raise InputError(
            f'{folder.root} has no list of classes: no YAML file with names, and none of {", ".join(_LISTS)}'
        )
    if path.suffix in ('.yaml', '.yml'):
        content = yaml.safe_load(path.read_text(encoding='utf-8-sig'))
        names = _names(content['names'], path)
        keypoints = 'kpt_shape' in content
        splits = list(_yaml_splits(folder, path, content))
    else:
        lines = [line.strip() for line in read_text(folder, path).splitlines()]
        names, keypoints = dict(enumerate(line for line in lines if line)), False
        splits = [(split_of(image.relative_to(folder.images)), image) for image in folder.all_images()]
    if keypoints:
        folder.notes.append('keypoints are left out; the boxes of their objects are kept')
    images = []
    for split, image in splits:
        with folder.each():
            width, height = folder.size(image)
            label = _label_file(folder, image)
            shapes = [] if label is None else list(_shapes(folder, label, names, (width, height), keypoints))
            images.append(LabelledImage(image, width, height, shapes, split))
    _require_images(folder, {image for _, image in splits})
    return Source(list(names.values()), images)


def _names(names: object, path: Path) -> dict[int, str]:
    if isinstance(names, list):
        names = dict(enumerate(names))
    try:
        numbered = {int(key): name for key, name in names.items()}
    except (AttributeError, TypeError, ValueError, OverflowError):
        numbered = {}
    if not numbered or any(name is None or isinstance(name, (list, dict)) for name in numbered.values()):
        raise InputError(f'{path}: names is {str(names)[:200]}. It must be a list of names, or names by number')
    return {number: str(name) for number, name in sorted(numbered.items())}


def _yaml_splits(folder: Folder, path: Path, content: dict) -> Iterator[tuple[str, Path]]:
    """The split and the path of each image that a YAML file names."""
    base = _base(path, content.get('path'))
    entries = [(split, content[key]) for key, split in _SPLITS.items() if content.get(key)]
    if not entries:
        raise InputError(f'{path} names no images: it has none of {", ".join(_SPLITS)}')
    for split, entry in entries:
        for part in entry if isinstance(entry, list) else [entry]:
            with folder.each():
                yield from ((split, image) for image in _images(folder, path, base, str(part)))


def _base(path: Path, stated: object) -> Path:
    """The folder that the paths of a YAML file are relative to. A folder of another machine is ignored."""
    base = Path(path.parent, str(stated or ''))
    return base if os.path.isdir(base) else path.parent


def _images(folder: Folder, path: Path, base: Path, part: str) -> list[Path]:
    """The images of a folder, or of a text file that lists images."""
    place = base / part
    if not os.path.exists(place) and part.startswith('../'):
        # Roboflow's files say ../train/images and mean train/images.
        place = base / part.removeprefix('../')
    place = folder.require_inside(place, part, path)
    if os.path.isdir(place):
        files = sorted(file for file in place.rglob('*') if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
        if not files:
            raise folder.broken(path, f'the folder {part} has no images (looked for {", ".join(IMAGE_SUFFIXES)})')
        return files
    if os.path.isfile(place) and place.suffix == '.txt':
        images = []
        for line in read_text(folder, place).splitlines():
            if line.strip():
                with folder.each():
                    images.append(folder.find(line.strip(), place))
        return images
    raise folder.broken(path, f'it names {part}, which is neither a folder nor a text file that lists images')


def _label_file(folder: Folder, image: Path) -> Path | None:
    """The labels of an image: below ``labels`` instead of ``images``, or beside it. None if it has none."""
    parts = image.parts
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == 'images':
            label = Path(*parts[:index], 'labels', *parts[index + 1 :]).with_suffix('.txt')
            if label.is_file():
                return label
            break
    candidates = [image.with_suffix('.txt')]
    if folder.images != folder.root:
        relative = image.relative_to(folder.images) if image.is_relative_to(folder.images) else Path(image.name)
        candidates += [(folder.root / part / relative).with_suffix('.txt') for part in ('labels', '')]
    return next((label for label in candidates if label.is_file()), None)


def _shapes(
    folder: Folder, label: Path, names: dict[int, str], size: tuple[int, int], keypoints: bool
) -> Iterator[Shape]:
    for number, line in enumerate(read_text(folder, label).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            index, *values = map(float, line.split())
        except ValueError as error:
            raise folder.broken(label, f'line {number} is {line[:60]!r}, not numbers') from error
        if index not in names:
            raise folder.broken(
                label, f'line {number} has the class {index:g}, and the list of classes has {len(names)} names from 0'
            )
        if not all(map(math.isfinite, values)) or any(not _LEAST <= value <= _MOST for value in values):
            raise folder.broken(label, f'line {number} has numbers that are no fractions of the image: {line[:60]!r}')
        points = np.array(values[:4] if keypoints else values)
        if len(points) == 4:
            x, y, width, height = points * (*size, *size)
            corners = rectangle(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            yield Shape(names[int(index)], corners=corners)
        elif len(points) >= 6 and len(points) % 2 == 0:
            yield Shape(names[int(index)], polygon=points.reshape(-1, 2) * size)
        else:
            raise folder.broken(
                label,
                f'line {number} has {len(values)} numbers after the class. A box has 4; a polygon 6 or more, in pairs',
            )


def _require_images(folder: Folder, images: set[Path]) -> None:
    """Note labels whose image is not there. Those of other splits than the YAML file's are no fault."""
    labels = {image: _label_file(folder, image) for image in images}
    known = set(filter(None, labels.values())) | {
        label for image in folder.all_images() if image not in images and (label := _label_file(folder, image))
    }
    for parent in sorted({label.parent for label in known}):
        for label in sorted(parent.glob('*.txt')) if parent.name == 'labels' or 'labels' in parent.parts else ():
            if label not in known and label.name not in _LISTS:
                with folder.each():
                    raise folder.missing(f'{label.stem}.* (for {folder.name(label)})')
