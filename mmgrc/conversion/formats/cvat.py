"""CVAT: "CVAT for images 1.1", an XML file for all images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mmgrc.runs.error import InputError

from ..folder import Folder, first_bytes, read_xml
from ..shapes import LabelledImage, Shape, Source, coordinates, ellipse, encode, rectangle

__all__ = ['is_annotation', 'read']

_SPLITS = {'train': 'train', 'val': 'val', 'valid': 'val', 'validation': 'val', 'test': 'test'}


def is_annotation(path: Path) -> bool:
    """Whether an XML file looks like one of CVAT."""
    return b'<annotations>' in first_bytes(path)


def read(folder: Folder) -> Source:
    """Read boxes, polygons, ellipses and masks. Lines, points, cuboids, skeletons and tags are left out.

    Polygons and masks of an image with the same label and ``group_id`` are one object, as in CVAT's export to COCO.

    Raises:
        InputError: A file is an export of a video.
    """
    names: dict[str, None] = {}
    images = []
    for path in folder.with_suffix('.xml'):
        if not is_annotation(path):
            continue
        with folder.each():
            root = read_xml(folder, path)
            if root.find('track') is not None:
                raise InputError(
                    f'{path} is "CVAT for video 1.1". Export the task as "CVAT for images 1.1", with its images'
                )
            for label in root.findall('meta//labels/label/name'):
                names[(label.text or '').strip()] = None
            for element in root.iter('image'):
                with folder.each():
                    images.append(_read_image(folder, path, element))
    used = {shape.label for image in images for shape in image.shapes}
    return Source([*names, *sorted(used - names.keys())], images)


def _read_image(folder: Folder, path: Path, element: Any) -> LabelledImage:
    name = element.get('name') or ''
    if not name:
        raise folder.broken(path, f'image {element.get("id")} has no name')
    subset = (element.get('subset') or '').lower()
    # An export with images has them in a folder of the subset's name.
    image = folder.find(f'{element.get("subset")}/{name}' if subset else name, path)
    size = folder.size(image, [element.get(side) for side in ('width', 'height')], path)
    shapes = []
    for number, child in enumerate(element, start=1):
        try:
            shapes += _shapes(folder, child, size, name)
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise folder.broken(path, f'shape {number} ({child.tag}) of {name} cannot be read: {error}') from error
    return LabelledImage(image, *size, shapes, _SPLITS.get(subset))


def _shapes(folder: Folder, element: Any, size: tuple[int, int], name: str) -> Iterator[Shape]:
    label, group = element.get('label'), int(element.get('group_id') or 0) or None

    def number(key: str, default: float | None = None) -> float:
        value = element.get(key, default)
        if value is None or not np.isfinite(float(value)):
            raise ValueError(f'{key} is {value}')
        return float(value)

    if element.tag in ('box', 'polygon', 'ellipse', 'mask') and not label:
        raise ValueError('it has no label')
    if element.tag == 'box':
        sides = coordinates([number(key) for key in ('xtl', 'ytl', 'xbr', 'ybr')], size)
        yield Shape(label, corners=rectangle(*sides, number('rotation', 0)))
    elif element.tag == 'polygon':
        points = coordinates([pair.split(',') for pair in element.get('points', '').split(';')], size)
        if points.shape[1] != 2:
            raise ValueError(f'its points are {element.get("points")[:60]!r}')
        yield Shape(label, polygon=points, group=group)
    elif element.tag == 'ellipse':
        values = coordinates([number(key) for key in ('cx', 'cy', 'rx', 'ry')], size)
        yield Shape(label, polygon=ellipse(*values, number('rotation', 0)), group=group)
    elif element.tag == 'mask':
        left, top, width, height = map(
            int, coordinates([number(key) for key in ('left', 'top', 'width', 'height')], size)
        )
        counts = [int(count) for count in element.get('rle', '').split(',')]
        yield Shape(label, mask=_mask(counts, left, top, width, height, size), group=group)
    else:
        folder.skip(f'shapes of type {element.tag}', name)


def _mask(counts: list[int], left: int, top: int, width: int, height: int, size: tuple[int, int]) -> dict:
    """The pixels of a mask. Its counts are those of pixels outside and inside, in turn, row by row in its own box."""
    if sum(counts) != width * height or min(counts) < 0:
        raise ValueError(f'its counts have the sum {sum(counts)}, its box {width * height} pixels')
    if left < 0 or top < 0 or left + width > size[0] or top + height > size[1]:
        raise ValueError('it is outside of its image')
    whole = np.zeros(size[::-1], bool)
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    whole[top : top + height, left : left + width] = inside.reshape(height, width)
    return encode(whole)
