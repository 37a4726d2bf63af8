"""Pascal VOC: an XML file for each image; masks in SegmentationObject/; splits in ImageSets/Main/."""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from scipy.optimize import linear_sum_assignment

from ..folder import Folder, first_bytes, read_text, read_xml, split_of
from ..shapes import LabelledImage, Shape, Source, coordinates, encode, rectangle

__all__ = ['is_annotation', 'read']

_BORDER = 255
"""Value of the pixels between objects in SegmentationObject/."""
_MIN_OVERLAP = 0.3
"""Least IoU of a box with the extent of its mask."""


class _Object(NamedTuple):
    label: str
    box: tuple[float, float, float, float]
    """Left, top, right and bottom as in the file."""
    difficult: bool


class _File(NamedTuple):
    path: Path
    image: Path
    width: int
    height: int
    objects: list[_Object]


def is_annotation(path: Path) -> bool:
    """Whether an XML file looks like an annotation of VOC."""
    start = first_bytes(path)
    return b'<annotation>' in start or b'<annotation ' in start


def read(folder: Folder) -> Source:
    """Read boxes and, where ``SegmentationObject/`` has them, masks. Difficult objects become crowds.

    The devkit counts pixels from 1, and the last one belongs to the box. Other programs count from 0. A
    coordinate below 1 or with a fraction tells so, for the whole data set.
    """
    files = []
    paths = [path for path in folder.with_suffix('.xml') if is_annotation(path)]
    for path in paths:
        with folder.each():
            files.append(_read_file(folder, path))
    boxes = [value for file in files for one in file.objects for value in one.box]
    starts = [value for file in files for one in file.objects for value in one.box[:2]]
    from_one = all(value >= 1 for value in starts) and all(value == round(value) for value in boxes)
    if boxes:
        folder.notes.append(
            'coordinates count from 1, as in the devkit of VOC' if from_one else 'coordinates count from 0'
        )
    splits = _splits(folder, {path.stem for path in paths})
    images = []
    for file in files:
        stem, split = file.path.stem, split_of(file.path.relative_to(folder.root))
        if splits and stem not in splits:
            folder.skip('images in no list of ImageSets/Main', folder.name(file.image))
            continue
        with folder.each():
            shapes = _shapes(folder, file, from_one)
            images.append(LabelledImage(file.image, file.width, file.height, shapes, splits.get(stem, split)))
    return Source(_classes(folder, images), images)


def _read_file(folder: Folder, path: Path) -> _File:
    root = read_xml(folder, path)
    image = folder.find((root.findtext('filename') or '').strip(), path, path.stem)
    stated = [root.findtext(f'size/{side}') for side in ('width', 'height')]
    size = folder.size(image, stated, path)
    objects = []
    for number, one in enumerate(root.findall('object'), start=1):
        label = (one.findtext('name') or '').strip()
        if not label:
            raise folder.broken(path, f'object {number} has no name')
        values = [one.findtext(f'bndbox/{side}') for side in ('xmin', 'ymin', 'xmax', 'ymax')]
        try:
            box = tuple(coordinates(values, size).tolist())
        except ValueError as error:
            raise folder.broken(path, f'the box of object {number} ({label}): {error}') from error
        if box[2] < box[0] or box[3] < box[1]:
            raise folder.broken(path, f'the box of object {number} ({label}) is {values}: its sides are swapped')
        objects.append(_Object(label, box, (one.findtext('difficult') or '0').strip() == '1'))
    return _File(path, image, *size, objects)


def _shapes(folder: Folder, file: _File, from_one: bool) -> list[Shape]:
    boxes = [(x - from_one, y - from_one, right, bottom) for x, y, right, bottom in (one.box for one in file.objects)]
    masks: Sequence[dict | None] = [None] * len(boxes)
    path = file.path.parent.parent / 'SegmentationObject' / f'{file.path.stem}.png'
    if path.is_file():
        masks = _match(folder, file, boxes, _read_masks(folder, path, (file.height, file.width)))
    return [
        Shape(one.label, corners=rectangle(*box), mask=mask, crowd=one.difficult)
        for one, box, mask in zip(file.objects, boxes, masks, strict=True)
    ]


def _read_masks(folder: Folder, path: Path, size: tuple[int, int]) -> dict[int, np.ndarray]:
    """The mask (H, W), bool, of each number in the picture."""
    try:
        with Image.open(path) as image:
            if image.mode not in ('P', 'L', '1'):
                # Other programs write the colours of VOC's palette instead of numbers.
                colours = np.asarray(image.convert('RGB')).astype(np.int64) @ (1 << 16, 1 << 8, 1)
                border = 224 << 16 | 224 << 8 | 192
                values = np.unique(colours)
                numbers = np.searchsorted([v for v in values if v not in (0, border)], colours) + 1
                indices = np.where(np.isin(colours, (0, border)), 0, numbers)
            else:
                indices = np.asarray(image).astype(np.int64)
                indices[indices == _BORDER] = 0
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise folder.broken(path, f'it cannot be read: {error}') from error
    if indices.shape != size:
        raise folder.broken(
            path,
            f'it has {indices.shape[0]} rows and {indices.shape[1]} columns, its image {size[0]} and {size[1]}',
        )
    return {int(number): indices == number for number in np.unique(indices) if number}


def _match(
    folder: Folder, file: _File, boxes: Sequence[tuple[float, ...]], masks: dict[int, np.ndarray]
) -> list[dict | None]:
    """The mask of each object. In VOC object N has number N; other programs number them otherwise, so boxes decide."""
    found: list[dict | None] = [None] * len(boxes)
    numbers = list(masks)
    if boxes and numbers:
        overlaps = np.array([[_overlap(box, masks[number]) for number in numbers] for box in boxes])
        same = np.array([[number == index + 1 for number in numbers] for index in range(len(boxes))])
        # Equal boxes keep their order.
        for row, column in zip(*linear_sum_assignment(-(overlaps + 1e-6 * same)), strict=True):
            if overlaps[row, column] >= _MIN_OVERLAP:
                found[row] = encode(masks.pop(numbers[column]))
    if masks:
        folder.skip('masks of SegmentationObject that fit no box', f'{folder.name(file.path)} (number {min(masks)})')
    return found


def _overlap(box: Sequence[float], mask: np.ndarray) -> float:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    other = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    width, height = (min(box[i + 2], other[i + 2]) - max(box[i], other[i]) for i in (0, 1))
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return float(width * height / (areas - width * height))


def _splits(folder: Folder, stems: Set[str]) -> dict[str, str | None]:
    """The split of each annotation file that a list in ImageSets/Main names. Empty if there are none."""
    lists = {
        path.stem: path
        for path in folder.with_suffix('.txt')
        if path.parent.name == 'Main' and path.parent.parent.name == 'ImageSets'
    }
    wanted = ('train', 'val', 'test') if 'train' in lists else ('trainval', 'val', 'test')
    splits: dict[str, str | None] = {}
    for name in wanted:
        if name not in lists:
            continue
        with folder.each():
            for line in read_text(folder, lists[name]).splitlines():
                if not line.strip():
                    continue
                stem = _listed(line.strip(), stems)
                splits[stem] = None if name == 'trainval' else name
                if stem not in stems:
                    folder.skip('names in ImageSets/Main without an annotation file', f'{stem} ({name}.txt)')
    return splits


def _listed(line: str, stems: Set[str]) -> str:
    """The name in a line of a list. It may contain spaces. 1, 0 or -1 may follow: whether the image has a class."""
    name, *flag = line.rsplit(maxsplit=1)
    return name if flag in (['1'], ['0'], ['-1']) and line not in stems else line


def _classes(folder: Folder, images: Sequence[LabelledImage]) -> list[str]:
    """The names in the order of CVAT's labelmap.txt. Otherwise sorted, as VOC's own list is."""
    used = sorted({shape.label for image in images for shape in image.shapes})
    for path in folder.files:
        if path.name == 'labelmap.txt':
            with folder.each():
                names = [line.split(':')[0].strip() for line in read_text(folder, path).splitlines()]
                listed = [name for name in names if name and not name.startswith('#') and name != 'background']
                return [*listed, *(name for name in used if name not in listed)]
    return used
