"""Draw images of the hard generated set: outline and texture tell the classes apart, colour does not."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from .outlines import CLASSES, OTHER_OUTLINES, draw_outline

__all__ = ['HardShapes']

# Textures that look the same when mirrored, since training flips images.
_KINDS = ('rows', 'columns', 'checks', 'diamonds', 'dots', 'shifted dots', 'rings')
_PERIODS = (4.0, 7.0)
"""Periods of textures, in pixels."""
_TEXTURES_OF_A_CLASS = 3
_FOREIGN_TEXTURES = 3
_SCENES = 4
_RADII = (0.055, 0.17)
"""Smallest and largest radius of an outline, as fractions of the shorter side of the image."""
_LEAST_RADIUS = 5
"""In pixels: two periods of the finest texture."""
_MIN_VISIBLE = 0.5
"""An item is placed only if each object below it keeps this fraction of its area visible."""
_MIN_CONTRAST = 60
"""Minimum distance, in RGB, between the two colours of a texture."""
_HIDDEN = 2
"""Takes the place of the split in the seed of an image: the seed of the shared rules."""


class _Texture(NamedTuple):
    kind: str
    period: float
    """In pixels."""


class _Scene(NamedTuple):
    patches: tuple[int, int]
    """Rows and columns of patches in the background."""
    frequencies: np.ndarray
    """(3,): how frequent each class is."""


class _Item(NamedTuple):
    label: int | None
    """Index of the class. None: not an object."""
    mask: np.ndarray
    """(H, W), bool: the whole item."""
    texture: _Texture | None
    """None: a single colour."""
    centre: tuple[float, float]


class HardShapes:
    """Draws images that share hidden rules. The rules are the same in training and validation, and no image shows them.

    - A dictionary of textures. Each class has three textures, and its objects have one of them. A circle, square or
      triangle with one of three foreign textures is not an object. Neither is a star or a cross with a texture of a
      class.
    - Four kinds of scenes, which differ in the grain of their background. Each has its own class frequencies.

    All colours are drawn from the same distribution. Objects are small. Other objects, distractors and bars occlude
    them.

    Args:
        seed: Seed of the rules.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, _HIDDEN])
        textures = [_Texture(kind, period) for kind in _KINDS for period in _PERIODS]
        shuffled = iter([textures[i] for i in rng.permutation(len(textures))])
        self.textures = [[next(shuffled) for _ in range(_TEXTURES_OF_A_CLASS)] for _ in CLASSES]
        self.foreign = [next(shuffled) for _ in range(_FOREIGN_TEXTURES)]
        grains = [(2, 3), (8, 10), (2, 12), (12, 2)]
        self.scenes = [_Scene(grains[i], rng.dirichlet(np.ones(len(CLASSES)))) for i in rng.permutation(_SCENES)]

    def draw(
        self, rng: np.random.Generator, width: int, height: int
    ) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
        """Draw an image.

        Args:
            rng: Random number generator.
            width: Width of the image, in pixels.
            height: Height of the image, in pixels.

        Returns:
            The image (H, W, 3), uint8, BGR. And for each object, the index of its class and its visible mask (H, W),
            bool.
        """
        scene = self.scenes[rng.integers(_SCENES)]
        patches = (rng.uniform(70, 180) + rng.uniform(-60, 60, (*scene.patches, 3))).astype(np.float32)
        canvas = cv2.resize(patches, (width, height), interpolation=cv2.INTER_CUBIC)
        # The first item is an object and always finds a position.
        wanted = ['object'] * int(rng.integers(1, 6)) + ['distractor'] * int(rng.integers(2, 6))
        wanted += ['bar'] * int(rng.integers(0, 3))
        order = [wanted[0], *(wanted[1:][i] for i in rng.permutation(len(wanted) - 1))]
        objects: list[_Item] = []
        visible: list[np.ndarray] = []
        for kind in order:
            # Crowded images end with fewer items than planned.
            for _ in range(10):
                item = self._random_item(rng, kind, scene, width, height)
                remaining = [mask & ~item.mask for mask in visible]
                if all(m.sum() >= _MIN_VISIBLE * o.mask.sum() for m, o in zip(remaining, objects, strict=True)):
                    break
            else:
                continue
            visible = remaining
            if item.label is not None:
                objects.append(item)
                visible = [*visible, item.mask]
            canvas = np.where(item.mask[..., None], _paint(rng, item, width, height), canvas)
        image = np.clip(canvas + rng.normal(0, 8, canvas.shape), 0, 255).astype(np.uint8)
        return image, [(item.label, mask) for item, mask in zip(objects, visible, strict=True)]

    def _random_item(self, rng: np.random.Generator, kind: str, scene: _Scene, width: int, height: int) -> _Item:
        if kind == 'bar':
            ends = rng.uniform(0, [width, height], (2, 2)).round().astype(int)
            mask = np.zeros((height, width), np.uint8)
            cv2.line(mask, *(tuple(map(int, end)) for end in ends), 1, thickness=int(rng.integers(2, 5)))
            return _Item(None, mask.astype(bool), None, (0, 0))
        label = int(rng.choice(len(CLASSES), p=scene.frequencies))
        outline, textures = CLASSES[label], self.textures[label]
        if kind == 'distractor':
            if rng.random() < 0.5:
                textures = self.foreign
            else:
                outline = OTHER_OUTLINES[rng.integers(len(OTHER_OUTLINES))]
        texture = textures[rng.integers(len(textures))]
        smallest, largest = (share * min(width, height) for share in _RADII)
        # Small objects are more frequent than large ones, as in real images.
        radius = max(float(np.exp(rng.uniform(np.log(smallest), np.log(largest)))), _LEAST_RADIUS)
        x, y = rng.uniform([radius / 2, radius / 2], [width - radius / 2, height - radius / 2])
        mask = draw_outline(outline, width, height, (x, y), radius, rng.uniform(-0.4, 0.4))
        return _Item(label if kind == 'object' else None, mask, texture, (x, y))


def _paint(rng: np.random.Generator, item: _Item, width: int, height: int) -> np.ndarray:
    """Return the colours of the item at each pixel of the image, (H, W, 3)."""
    first = second = rng.uniform(20, 235, 3)
    if item.texture is None:
        return np.broadcast_to(first, (height, width, 3))
    while np.linalg.norm(first - second) < _MIN_CONTRAST:
        second = rng.uniform(20, 235, 3)
    bright = _is_bright(item.texture, rng.uniform(0, item.texture.period, 2), item.centre, width, height)
    return np.where(bright[..., None], first, second)


def _is_bright(
    texture: _Texture, phase: np.ndarray, centre: tuple[float, float], width: int, height: int
) -> np.ndarray:
    """Return which pixels have the first of the two colours of a texture, (H, W), bool."""
    y, x = np.mgrid[:height, :width].astype(float)
    if texture.kind == 'rings':
        return _odd(np.hypot(x - centre[0], y - centre[1]), texture)
    x, y = x + phase[0], y + phase[1]
    if texture.kind in ('diamonds', 'shifted dots'):
        x, y = (x + y) / np.sqrt(2), (x - y) / np.sqrt(2)
    if texture.kind == 'rows':
        return _odd(y, texture)
    if texture.kind == 'columns':
        return _odd(x, texture)
    if texture.kind in ('checks', 'diamonds'):
        return _odd(x, texture) ^ _odd(y, texture)
    return np.hypot(x % texture.period - texture.period / 2, y % texture.period - texture.period / 2) < (
        0.36 * texture.period
    )


def _odd(distance: np.ndarray, texture: _Texture) -> np.ndarray:
    """Return whether a distance lies in the second half of a period."""
    return distance % texture.period >= texture.period / 2
