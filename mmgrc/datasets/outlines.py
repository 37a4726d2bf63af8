"""Draw the outlines of the generated data sets."""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ['CLASSES', 'OTHER_OUTLINES', 'draw_outline']

CLASSES = ('circle', 'square', 'triangle')
OTHER_OUTLINES = ('star', 'cross')
"""Outlines that are not objects."""
_CORNERS = {'square': 4, 'triangle': 3}


def draw_outline(
    name: str, width: int, height: int, centre: tuple[float, float], radius: float, tilt: float = 0
) -> np.ndarray:
    """Return the pixels inside an outline.

    Args:
        name: One of :data:`CLASSES` or :data:`OTHER_OUTLINES`.
        width: Width of the image, in pixels.
        height: Height of the image, in pixels.
        centre: x and y of its centre, in pixels.
        radius: Radius of a circle, in pixels. The corners of the others are a fifth farther from the centre, so that
            the areas are similar.
        tilt: Angle, in radians. At 0, an outline stands on one side. It does not apply to a circle.

    Returns:
        (H, W), bool.
    """
    mask = np.zeros((height, width), np.uint8)
    x, y = centre
    if name == 'circle':
        cv2.circle(mask, (round(x), round(y)), max(round(radius), 3), 1, thickness=-1)
        return mask.astype(bool)
    if name in _CORNERS:
        corners = _CORNERS[name]
        reach = np.full(corners, 1.2)
        angles = np.pi / 2 + np.pi / corners + tilt + 2 * np.pi * np.arange(corners) / corners
    elif name == 'star':
        reach = np.tile([1.35, 0.6], 5)
        angles = -np.pi / 2 + tilt + np.pi * np.arange(10) / 5
    else:
        # A plus sign: for each of its four arms, the inner corner before it and the two corners at its end.
        reach = np.tile([0.57, 1.3, 1.3], 4)
        angles = tilt + np.repeat(np.pi / 2 * np.arange(4), 3) + np.tile([-np.pi / 4, -0.31, 0.31], 4)
    points = np.stack([x + reach * radius * np.cos(angles), y + reach * radius * np.sin(angles)], axis=1)
    cv2.fillPoly(mask, [np.round(points).astype(np.int32)], 1)
    return mask.astype(bool)
