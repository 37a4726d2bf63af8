"""Ground truth beside predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

__all__ = ['draw_predictions']

_PANEL = 3.2
"""Width of one image, in inches."""


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
                (labels[a['category_id']], a['bbox'], truth.annToMask(a), None)
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
                (
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


def _draw(
    axis: Axes,
    image: np.ndarray,
    title: str,
    objects: list[tuple[int, Sequence[float], np.ndarray | None, float | None]],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> None:
    """Draw objects (label, box as x, y, width and height, mask, score) on an image (H, W, 3)."""
    axis.imshow(image if image.ndim == 3 else image[..., None].repeat(3, axis=2))
    axis.set_title(title, fontsize=9)
    for label, (x, y, w, h), mask, score in objects:
        colour = np.asarray(palette[label]) / 255
        if mask is not None:
            axis.imshow(np.dstack([np.broadcast_to(colour, (*mask.shape, 3)), 0.35 * mask]))
            axis.contour(mask, levels=[0.5], colors=[colour], linewidths=1.4)
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
