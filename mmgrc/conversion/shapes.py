"""What readers return, and its translation into COCO annotations."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

__all__ = [
    'LabelledImage',
    'Shape',
    'Source',
    'coco_annotation',
    'coordinates',
    'ellipse',
    'encode',
    'group_shapes',
    'rectangle',
]

_ROUNDING = 1.0
"""Coordinates that leave the image by no more than this, in pixels, are moved to its border."""
_DIGITS = 2
"""Decimals of coordinates in pixels, as in COCO's own files."""
_ARC = 0.1
"""How far an ellipse and the polygon for it may be apart, in pixels."""
_MOST_POINTS = 1000
"""An ellipse that would need more is larger than images are."""
_FAR = 10
"""Coordinates that are farther from 0 than this, in sizes of the image, are no slips of a hand but errors."""


class Shape(NamedTuple):
    """An object, or a part of one. It has corners, a polygon or a mask, or corners and a mask."""

    label: str
    """Name of its class."""
    corners: np.ndarray | None = None
    """(4, 2): x and y of the corners of its box, which may be rotated, in pixels."""
    polygon: np.ndarray | None = None
    """(N, 2): x and y of its outline, in pixels."""
    mask: dict | None = None
    """Its pixels, as run lengths of the COCO API. See :func:`encode`."""
    group: Hashable = None
    """Polygons and masks of an image with the same label and group are one object. None: it is an object by itself."""
    crowd: bool = False
    """Whether training and evaluation ignore it, as COCO's ``iscrowd``."""


class LabelledImage(NamedTuple):
    """An image and its objects."""

    path: Path
    width: int
    """In pixels, as MMDetection loads the image."""
    height: int
    shapes: list[Shape]
    split: str | None = None
    """``'train'``, ``'val'`` or ``'test'``. None: the source does not say."""


class Source(NamedTuple):
    """What a reader found."""

    classes: list[str]
    """In the order of the source's list. Sorted by name if it has none."""
    images: list[LabelledImage]


def coordinates(values: object, size: Sequence[float]) -> np.ndarray:
    """Return coordinates of a file as an array of the same shape, after a check.

    Args:
        values: Numbers, or texts of numbers, in nested lists.
        size: Width and height of the image, in the unit of the coordinates.

    Raises:
        ValueError: They are no numbers, not finite, or far outside of the image. To draw these could need any amount of
            memory.
    """
    try:
        array = np.array(values, float)
    except (TypeError, ValueError, OverflowError):
        array = np.array(math.nan)
    # Not the other way around: each comparison with NaN is false.
    wrong = array[~(np.abs(array) <= _FAR * max(size))]
    if len(wrong):
        raise ValueError(
            f'its coordinates are {str(values)[:60]} (with {wrong[0]:g}). They must be numbers, at most {_FAR} times '
            'the size of the image'
        )
    return array


def rectangle(
    left: float, top: float, right: float, bottom: float, degrees: float = 0, pivot: Sequence[float] | None = None
) -> np.ndarray:
    """Return the corners of a box, clockwise from the top left, (4, 2).

    Args:
        left: Left side, in pixels.
        top: Top side, in pixels.
        right: Right side, in pixels.
        bottom: Bottom side, in pixels.
        degrees: Rotation, clockwise as seen in the image.
        pivot: x and y of the point that stays in its place. None: the centre.
    """
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float)
    return _rotate(corners, degrees, corners.mean(axis=0) if pivot is None else pivot)


def ellipse(x: float, y: float, x_radius: float, y_radius: float, degrees: float = 0) -> np.ndarray:
    """Return a polygon for an ellipse, (N, 2), at most a tenth of a pixel inside of it up to a radius of 20000.

    Args:
        x: Horizontal position of the centre, in pixels.
        y: Vertical position of the centre, in pixels.
        x_radius: Horizontal radius before the rotation, in pixels.
        y_radius: Vertical radius before the rotation, in pixels.
        degrees: Rotation around the centre, clockwise as seen in the image.
    """
    longest = max(abs(x_radius), abs(y_radius), _ARC)
    # Of the angle between two points: cos(angle / 2) = 1 - arc / radius, which is rounded to 1 for large radii.
    angle = 2 * math.acos(1 - _ARC / longest)
    number = min(max(12, math.ceil(2 * math.pi / max(angle, 1e-9))), _MOST_POINTS)
    angles = np.arange(number) * (2 * math.pi / number)
    points = np.stack([x + x_radius * np.cos(angles), y + y_radius * np.sin(angles)], axis=1)
    return _rotate(points, degrees, (x, y))


def _rotate(points: np.ndarray, degrees: float, pivot: Sequence[float]) -> np.ndarray:
    if not degrees:
        return points
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    # y points down: a rotation that is clockwise for the eye.
    return (points - pivot) @ np.array([[cosine, sine], [-sine, cosine]]) + pivot


def encode(mask: np.ndarray) -> dict:
    """Return the run lengths of a mask (H, W), as COCO's files have them."""
    return _as_json(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))))


def _as_json(rle: dict) -> dict:
    return {'size': [int(side) for side in rle['size']], 'counts': rle['counts'].decode('ascii')}


def group_shapes(shapes: Sequence[Shape]) -> list[list[Shape]]:
    """Return the shapes of each object of an image, in the order of the first ones."""
    objects: dict[Hashable, list[Shape]] = {}
    for number, shape in enumerate(shapes):
        joined = shape.group is not None and shape.corners is None
        objects.setdefault((shape.label, shape.group) if joined else number, []).append(shape)
    return list(objects.values())


def coco_annotation(shapes: Sequence[Shape], width: int, height: int, box_as_mask: bool = False) -> dict | str:
    """Return the annotation of an object, without ids. Or say, as a string, why there is none.

    Args:
        shapes: Its parts.
        width: Width of the image, in pixels.
        height: Height of the image, in pixels.
        box_as_mask: Whether an object that has only a box gets the area of that box as its mask.

    Returns:
        ``bbox``, ``area``, ``iscrowd``, and ``segmentation`` if there is one. What is outside of the image is cut off.
    """
    corners = next((shape.corners for shape in shapes if shape.corners is not None), None)
    polygons = [shape.polygon for shape in shapes if shape.polygon is not None]
    masks = [shape.mask for shape in shapes if shape.mask is not None]
    if box_as_mask and not polygons and not masks and corners is not None:
        polygons = [corners]
    polygons = [polygon for polygon in polygons if len(polygon) >= 3]
    if not polygons and not masks and corners is None:
        return 'a polygon with fewer than 3 points'
    segmentation = _segmentation(polygons, masks, width, height)
    box = _box(corners, segmentation, width, height)
    if box is None:
        return 'outside of its image'
    x, y, right, bottom = box
    annotation = {
        'bbox': [round(value, _DIGITS) for value in (x, y, right - x, bottom - y)],
        'area': round((right - x) * (bottom - y), _DIGITS),
        'iscrowd': int(any(shape.crowd for shape in shapes)),
    }
    if segmentation is not None:
        annotation['area'] = int(coco_mask.area(_rle(segmentation, width, height)))
        annotation['segmentation'] = segmentation
    return annotation


def _segmentation(
    polygons: Sequence[np.ndarray], masks: Sequence[dict], width: int, height: int
) -> list[list[float]] | dict | None:
    if not polygons and not masks:
        return None
    inside = [np.clip(polygon, 0, (width, height)) for polygon in polygons]
    moved = max((np.abs(a - b).max() for a, b in zip(polygons, inside, strict=True)), default=0)
    if not masks and moved <= _ROUNDING:
        return [polygon.round(_DIGITS).ravel().tolist() for polygon in inside]
    # Run lengths: to move far points to the border would change the outline.
    parts = [*masks, *(_rle([polygon.ravel().tolist()], width, height) for polygon in polygons)]
    return _as_json(coco_mask.merge(parts)) if len(parts) > 1 else _as_json(_bytes(parts[0]))


def _bytes(rle: dict) -> dict:
    counts = rle['counts']
    return {**rle, 'counts': counts.encode('ascii') if isinstance(counts, str) else counts}


def _rle(segmentation: list[list[float]] | dict, width: int, height: int) -> dict:
    if isinstance(segmentation, dict):
        return segmentation
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))


def _box(
    corners: np.ndarray | None, segmentation: list[list[float]] | dict | None, width: int, height: int
) -> tuple[float, float, float, float] | None:
    """Left, top, right and bottom inside the image. None if nothing is inside."""
    if corners is None and isinstance(segmentation, dict):
        left, top, *size = (float(value) for value in coco_mask.toBbox(segmentation))
        return (left, top, left + size[0], top + size[1]) if min(size) > 0 else None
    points = np.concatenate([np.reshape(p, (-1, 2)) for p in segmentation]) if corners is None else corners
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        return None
    return max(float(left), 0.0), max(float(top), 0.0), min(float(right), width), min(float(bottom), height)
