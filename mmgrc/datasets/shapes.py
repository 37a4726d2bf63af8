"""Generate data sets of circles, squares and triangles: instance segmentation in COCO format, or classification."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from .hard_shapes import HardShapes
from .outlines import CLASSES, draw_outline

__all__ = ['CLASSES', 'write_shape_classes', 'write_shapes']

MIN_SIZE = 32
"""Smallest width and height of an image."""
_MAX_OBJECTS = 4
_CLASSIFICATION = 3
"""Added to the split in the seed of an image, so that no image of one data set is in the other."""
_MIN_VISIBLE = 0.7
"""A shape is placed only if each shape below it keeps this fraction of its area visible."""
_MIN_CONTRAST = 70
"""Minimum distance, in RGB, between the colour of a shape and what it covers."""


class _Shape(NamedTuple):
    label: int
    mask: np.ndarray
    """(H, W), bool: the whole shape."""
    colour: np.ndarray
    """(3,), BGR."""


def write_shapes(
    out: str | Path,
    images: int = 240,
    val: int = 60,
    size: tuple[int, int] = (160, 128),
    seed: int = 0,
    hard: bool = False,
) -> None:
    """Write ``train/`` and ``val/`` images and their ``annotations/instances_*.json``.

    The same arguments give the same bytes. Masks cover the visible part and are stored as run lengths, since a shape
    may have a hole where another one covers it.

    Args:
        out: Folder to write to, created if it is missing.
        images: Number of training images.
        val: Number of validation images.
        size: Width and height of an image, in pixels.
        seed: Seed of everything random.
        hard: Draw :class:`~mmgrc.datasets.hard_shapes.HardShapes`: small objects, defined by outline and texture, among
            distractors. Their rules are the same for the whole data set. Classes and files are the same as without.

    Raises:
        ValueError: A number is too small.
    """
    _check_arguments(images, val, size, seed, least=1)
    draw = HardShapes(seed).draw if hard else _draw_image
    out = Path(out)
    (out / 'annotations').mkdir(parents=True, exist_ok=True)
    for split_id, (split, count) in enumerate((('train', images), ('val', val))):
        (out / split).mkdir(exist_ok=True)
        records, annotations = [], []
        for image_id in range(1, count + 1):
            # One generator per image, so that an image does not depend on the number of images.
            rng = np.random.default_rng([seed, split_id, image_id])
            image, shapes = draw(rng, *size)
            name = f'{image_id:06d}.png'
            _write_image(out / split / name, image)
            records.append({'id': image_id, 'file_name': name, 'width': size[0], 'height': size[1]})
            for label, mask in shapes:
                annotations.append(_annotation(len(annotations) + 1, image_id, label, mask))
        content = {
            'info': {'description': f'mmgrc {"hard " if hard else ""}shapes, {split}, seed {seed}'},
            'images': records,
            'annotations': annotations,
            'categories': [{'id': i, 'name': name} for i, name in enumerate(CLASSES, start=1)],
        }
        # The annotations are written last: if they exist, the images exist.
        (out / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content), encoding='utf-8')


def write_shape_classes(
    out: str | Path, images: int = 3000, val: int = 300, size: tuple[int, int] = (64, 64), seed: int = 0
) -> None:
    """Write images of single shapes for classification: ``train/CLASS/*.png`` and ``val/CLASS/*.png``.

    The same arguments give the same bytes. All classes are equally frequent, up to one image. Shapes and backgrounds
    are drawn as in :func:`write_shapes`, but no image is in both data sets.

    Args:
        out: Folder to write to, created if it is missing.
        images: Number of training images.
        val: Number of validation images.
        size: Width and height of an image, in pixels.
        seed: Seed of everything random.

    Raises:
        ValueError: A number is too small.
    """
    _check_arguments(images, val, size, seed, least=len(CLASSES))
    for split_id, (split, count) in enumerate((('train', images), ('val', val))):
        for name in CLASSES:
            Path(out, split, name).mkdir(parents=True, exist_ok=True)
        for image_id in range(1, count + 1):
            rng = np.random.default_rng([seed, _CLASSIFICATION + split_id, image_id])
            label = image_id % len(CLASSES)
            canvas = _draw_background(rng, *size)
            shape = _random_shape(rng, *size, canvas, label)
            image = _finish(rng, _paint(rng, shape, canvas))
            _write_image(Path(out, split, CLASSES[label], f'{image_id:06d}.png'), image)


def _check_arguments(images: int, val: int, size: tuple[int, int], seed: int, least: int) -> None:
    if min(images, val) < least:
        raise ValueError(f'images={images}, val={val}: give at least {least} of each')
    if min(size) < MIN_SIZE:
        raise ValueError(f'size={tuple(size)}: width and height must be at least {MIN_SIZE} pixels')
    if seed < 0:
        raise ValueError(f'seed={seed}: give a whole number from 0 up')


def _write_image(path: Path, image: np.ndarray) -> None:
    if not cv2.imwrite(str(path), image):
        raise OSError(f'cannot write {path}')


def _annotation(annotation_id: int, image_id: int, label: int, mask: np.ndarray) -> dict:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        'id': annotation_id,
        'image_id': image_id,
        'category_id': label + 1,
        'iscrowd': 0,
        'area': int(mask.sum()),
        'bbox': [float(v) for v in coco_mask.toBbox(encoded)],
        'segmentation': {'size': list(encoded['size']), 'counts': encoded['counts'].decode('ascii')},
    }


def _draw_image(rng: np.random.Generator, width: int, height: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Draw an image (H, W, 3), BGR. Also return the label and the visible mask (H, W), bool, of each shape."""
    canvas = _draw_background(rng, width, height)
    shapes: list[_Shape] = []
    visible: list[np.ndarray] = []
    wanted = int(rng.integers(1, _MAX_OBJECTS + 1))
    # The first shape always finds a position. Crowded images end with fewer shapes than planned.
    for _ in range(20 * wanted):
        shape = _random_shape(rng, width, height, canvas)
        remaining = [mask & ~shape.mask for mask in visible]
        if any(m.sum() < _MIN_VISIBLE * s.mask.sum() for m, s in zip(remaining, shapes, strict=True)):
            continue
        shapes.append(shape)
        visible = [*remaining, shape.mask]
        canvas = _paint(rng, shape, canvas)
        if len(shapes) == wanted:
            break
    return _finish(rng, canvas), [(shape.label, mask) for shape, mask in zip(shapes, visible, strict=True)]


def _paint(rng: np.random.Generator, shape: _Shape, canvas: np.ndarray) -> np.ndarray:
    """Return the canvas (H, W, 3) with the shape on it, in a slightly uneven colour."""
    shade = rng.normal(0, 6, (*canvas.shape[:2], 1))
    return np.where(shape.mask[..., None], shape.colour + shade, canvas)


def _finish(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Return the canvas as an image (H, W, 3), uint8, with noise."""
    return np.clip(canvas + rng.normal(0, 4, canvas.shape), 0, 255).astype(np.uint8)


def _draw_background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Draw a dim, blurred background (H, W, 3), float, with lines and crosses that are not objects."""
    patches = (rng.uniform(70, 180) + rng.uniform(-40, 40, (4, 5, 3))).astype(np.float32)
    canvas = cv2.resize(patches, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(int(rng.integers(2, 7))):
        colour = tuple(float(c) for c in rng.uniform(0, 255, 3))
        x, y, dx, dy = (int(v) for v in rng.uniform([0, 0, -30, -30], [width, height, 30, 30]))
        cv2.line(canvas, (x, y), (x + dx, y + dy), colour, thickness=int(rng.integers(1, 3)))
        if rng.random() < 0.3:
            cv2.line(canvas, (x + dx, y), (x, y + dy), colour, thickness=1)
    return canvas


def _random_shape(
    rng: np.random.Generator, width: int, height: int, canvas: np.ndarray, label: int | None = None
) -> _Shape:
    """Return a shape that is at least half inside the image. Its colour differs from what it covers."""
    label = int(rng.integers(len(CLASSES))) if label is None else label
    # Small shapes are more frequent than large ones, as in real images.
    radius = min(width, height) * float(np.exp(rng.uniform(np.log(0.14), np.log(0.34))))
    x, y = rng.uniform([radius / 2, radius / 2], [width - radius / 2, height - radius / 2])
    # It stands on one side, up to a tilt.
    tilt = 0.0 if CLASSES[label] == 'circle' else float(rng.uniform(-0.4, 0.4))
    mask = draw_outline(CLASSES[label], width, height, (x, y), radius, tilt)
    under = canvas[mask].mean(axis=0)
    while True:
        # Hues depend on the class (red, green, blue) but overlap, so that a short training can start to learn.
        hue = (120 * label + rng.normal(0, 20)) % 360
        hsv = np.array([[[hue, rng.uniform(0.6, 1), rng.uniform(0.5, 1)]]], np.float32)
        colour = 255 * cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0].astype(float)
        if np.linalg.norm(colour - under) >= _MIN_CONTRAST:
            return _Shape(label, mask, colour)
