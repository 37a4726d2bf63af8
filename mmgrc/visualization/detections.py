"""Detections drawn on images, alone and beside the truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Polygon, Rectangle
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

__all__ = ['Drawn', 'draw_detections', 'draw_predictions']

_PANEL = 3.2
"""Width of one image, in inches."""
_LONGEST = 8
"""Longer side of an image that is drawn alone, in inches."""


class Drawn(NamedTuple):
    """An object as it is drawn."""

    label: int
    box: Sequence[float]
    """x, y, width and height, in pixels."""
    mask: np.ndarray | None
    """(H, W), true on the object."""
    score: float | None
    """In [0, 1]; None for the truth."""


def draw_predictions(
    predictions: Sequence[dict],
    truth: COCO,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    out: str | Path,
    count: int = 8,
    score_thr: float = 0.5,
) -> None:
    """Draw images in pairs, the truth at the left and the predictions at the right.

    Args:
        predictions: What ``tools/test.py --out`` wrote: ``img_id``, ``img_path`` and ``pred_instances`` of each image.
        truth: The data set's annotations.
        classes: Names of the labels.
        palette: Colours of the labels, RGB from 0 to 255.
        out: Picture to write.
        count: How many images, taken evenly from the predictions.
        score_thr: Least score of a drawn prediction, in [0, 1].
    """
    chosen = np.linspace(0, len(predictions) - 1, min(count, len(predictions))).round().astype(int)
    labels = dict(zip(truth.getCatIds(catNms=list(classes)), range(len(classes)), strict=True))
    pairs = 2 if len(chosen) > 1 else 1
    rows = -(-len(chosen) // pairs)
    height, width = predictions[0]['ori_shape'][:2]
    figure, axes = plt.subplots(
        rows, 2 * pairs, figsize=(2 * pairs * _PANEL, rows * _PANEL * (height / width + 0.1)), squeeze=False
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for place, index in enumerate(chosen):
        prediction = predictions[index]
        left, right = axes[place // pairs, 2 * (place % pairs) : 2 * (place % pairs) + 2]
        image = plt.imread(prediction['img_path'])
        image = image if image.dtype == np.uint8 else (image * 255).round().astype(np.uint8)
        annotations = truth.loadAnns(truth.getAnnIds(imgIds=[prediction['img_id']], iscrowd=False))
        _draw(
            left,
            image,
            'truth',
            [
                Drawn(labels[a['category_id']], a['bbox'], truth.annToMask(a), None)
                for a in annotations
                if a['category_id'] in labels
            ],
            classes,
            palette,
        )
        found = prediction['pred_instances']
        boxes = np.asarray(found['bboxes'], float)
        masks = found.get('masks')
        _draw(
            right,
            image,
            'prediction',
            [
                Drawn(
                    int(found['labels'][i]),
                    [*boxes[i, :2], *(boxes[i, 2:] - boxes[i, :2])],
                    None if masks is None else coco_mask.decode(masks[i]),
                    float(found['scores'][i]),
                )
                for i in range(len(boxes))
                if found['scores'][i] >= score_thr
            ],
            classes,
            palette,
        )
    figure.tight_layout(pad=0.4)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def draw_detections(
    image: np.ndarray,
    objects: Sequence[Drawn],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    out: str | Path,
) -> None:
    """Draw objects on an image of their own. Small images are enlarged, so that labels have room.

    Args:
        image: (H, W, 3), RGB, uint8.
        objects: What to draw.
        classes: Names of the labels.
        palette: Colours of the labels, RGB from 0 to 255.
        out: Picture to write.
    """
    height, width = image.shape[:2]
    scale = _LONGEST / max(height, width)
    figure = plt.figure(figsize=(width * scale, height * scale))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    _draw(axis, image, '', objects, classes, palette)
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    figure.savefig(out, dpi=max(100, round(1 / scale)))
    plt.close(figure)


def _tint(image: np.ndarray, objects: Sequence[Drawn], colours: Sequence[np.ndarray]) -> np.ndarray:
    """The image (H, W, 3), in [0, 1], with the masks laid over it."""
    tinted = (image if image.ndim == 3 else image[..., None].repeat(3, axis=2)) / 255
    for drawn, colour in zip(objects, colours, strict=True):
        if drawn.mask is not None:
            inside = np.asarray(drawn.mask, bool)
            tinted[inside] = 0.65 * tinted[inside] + 0.35 * colour
    return tinted


def _draw(
    axis: Axes,
    image: np.ndarray,
    title: str,
    objects: Sequence[Drawn],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> None:
    """Draw objects on an image (H, W, 3), RGB, or (H, W)."""
    colours = [np.asarray(palette[drawn.label]) / 255 for drawn in objects]
    axis.imshow(_tint(image, objects, colours))
    axis.set_title(title, fontsize=9)
    for (label, (x, y, w, h), mask, score), colour in zip(objects, colours, strict=True):
        if mask is not None:
            outlines, _ = cv2.findContours(np.asarray(mask, np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
            for outline in outlines:
                axis.add_patch(Polygon(outline[:, 0], fill=False, edgecolor=colour, linewidth=1.4))
        axis.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor='white', linewidth=2.2))
        axis.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=colour, linewidth=1.2))
        text = classes[label] if score is None else f'{classes[label]} {score:.2f}'
        # Inside of the image, whatever the box.
        axis.text(
            max(x, 0) + 1,
            max(y, 0) + 1,
            text,
            fontsize=6.5,
            color='white',
            va='top',
            clip_on=True,
            bbox={'facecolor': colour * 0.7, 'edgecolor': 'none', 'pad': 0.8, 'alpha': 0.85},
        )
