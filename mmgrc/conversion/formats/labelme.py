"""LabelMe: a JSON file for each image, with polygons, rectangles, circles and masks."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from ..folder import Folder, read_json, read_text, split_of
from ..shapes import LabelledImage, Shape, Source, coordinates, ellipse, encode, rectangle

__all__ = ['is_annotation', 'read']


def is_annotation(content: object) -> bool:
    """Whether the content of a JSON file is LabelMe's."""
    return isinstance(content, dict) and 'shapes' in content and 'imagePath' in content


def read(folder: Folder) -> Source:
    """Read polygons, rectangles, circles and masks. Lines and points are left out.

    Polygons and masks of an image with the same label and ``group_id`` are one object, as in LabelMe's own export.
    """
    images = []
    for path in folder.with_suffix('.json'):
        with folder.each():
            content = read_json(folder, path)
            if not is_annotation(content):
                folder.skip('JSON files that are not of LabelMe', folder.name(path))
                continue
            image = folder.find(str(content['imagePath'] or ''), path, path.stem)
            size = folder.size(image, [content.get(key) for key in ('imageWidth', 'imageHeight')], path)
            shapes = list(_shapes(folder, path, content['shapes'] or [], size))
            images.append(LabelledImage(image, *size, shapes, split_of(path.relative_to(folder.root))))
    return Source(_classes(folder, images), images)


def _shapes(folder: Folder, path: Path, entries: object, size: tuple[int, int]) -> Iterator[Shape]:
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries], start=1):
        if not isinstance(entry, dict):
            raise folder.broken(path, f'shape {number} is {str(entry)[:60]!r}, and has no label and no points')
        label, kind, group = entry.get('label'), entry.get('shape_type') or 'polygon', entry.get('group_id')
        if not isinstance(label, str) or not label:
            raise folder.broken(path, f'shape {number} has the label {str(label)[:60]}. It must be text')
        if group is not None and not isinstance(group, (int, float, str)):
            raise folder.broken(path, f'shape {number} has the group_id {str(group)[:60]}. It must be a number or text')
        try:
            points = coordinates(entry.get('points'), size).reshape(-1, 2)
        except ValueError as error:
            raise folder.broken(path, f'shape {number} ({label}): {error}') from error
        if kind == 'polygon':
            yield Shape(label, polygon=points, group=group)
        elif kind == 'rectangle' and len(points) >= 2:
            yield Shape(label, corners=rectangle(*points.min(axis=0), *points.max(axis=0)))
        elif kind in ('rotation', 'oriented_rectangle') and len(points) == 4:
            yield Shape(label, corners=points)
        elif kind == 'circle' and len(points) == 2:
            radius = math.dist(*points)
            yield Shape(label, polygon=ellipse(*points[0], radius, radius), group=group)
        elif kind == 'mask' and len(points) == 2:
            yield Shape(label, mask=_mask(folder, path, number, entry, points, size[::-1]), group=group)
        elif kind in ('rectangle', 'rotation', 'oriented_rectangle', 'circle', 'mask'):
            raise folder.broken(path, f'shape {number} is a {kind} with {len(points)} points')
        else:
            folder.skip(f'shapes of type {kind}', folder.name(path))


def _mask(folder: Folder, path: Path, number: int, entry: dict, points: np.ndarray, size: tuple[int, int]) -> dict:
    """The pixels of a mask: a PNG image for the area between two points, whose pixels both belong to it."""
    try:
        content = np.frombuffer(base64.b64decode(entry['mask']), np.uint8)
        part = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE)
    except (KeyError, TypeError, ValueError, cv2.error):
        part = None
    left, top = (int(value) for value in points[0].round())
    if part is None or left < 0 or top < 0 or top + part.shape[0] > size[0] or left + part.shape[1] > size[1]:
        raise folder.broken(path, f'shape {number} is a mask that is no PNG image, or is larger than its image')
    whole = np.zeros(size, bool)
    whole[top : top + part.shape[0], left : left + part.shape[1]] = part > 0
    return encode(whole)


def _classes(folder: Folder, images: list[LabelledImage]) -> list[str]:
    """The names in the order of LabelMe's labels.txt. Otherwise sorted."""
    used = sorted({shape.label for image in images for shape in image.shapes})
    for path in folder.files:
        if path.name == 'labels.txt':
            with folder.each():
                names = [line.strip() for line in read_text(folder, path).splitlines()]
                # __ignore__ and _background_ are LabelMe's own.
                listed = [name for name in names if name and not name.startswith('_')]
                return [*listed, *(name for name in used if name not in listed)]
    return used
