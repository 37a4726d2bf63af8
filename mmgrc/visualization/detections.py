"""Draw detections on images, alone and beside the ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mmgrc.datasets.images import evenly_spaced, read_image

from .predictions import check_predictions
from .text import write_plainly

__all__ = ['Drawn', 'draw_detections', 'draw_predictions', 'paint_detections']

_PANEL = 3.2
"""Width of one image, in inches."""
_SLIMMEST = 0.25
"""Minimum height of a pair's panel relative to its width, and vice versa."""
_LONGEST = 8
"""Longer side of a single image, in inches."""
_SHORTEST = 0.5
"""Its minimum shorter side, so that even a very narrow image has room for labels."""
_LEAST_DPI = 100
"""Minimum resolution, so that labels can be read."""
_MARGIN = 1e-3
"""What a canvas is larger than its pixels, in pixels."""
_MOST_PIXELS = 8192
"""Maximum longer side of a drawing. Larger ones take gigabytes to draw."""


class Drawn(NamedTuple):
    """An object to draw."""

    label: int
    box: Sequence[float]
    """x, y, width and height, in pixels."""
    mask: np.ndarray | None
    """(H, W), true on the object. None: no mask."""
    score: float | None
    """In [0, 1]. None for the ground truth."""


def draw_predictions(
    predictions: Sequence[dict],
    truth: COCO,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    out: str | Path,
    count: int = 8,
    score_thr: float = 0.5,
) -> list[str]:
    """Draw images in pairs, with the ground truth on the left and the predictions on the right.

    Args:
        predictions: The output of ``tools/test.py --out``, with ``img_id``, ``img_path`` and ``pred_instances``.
        truth: The data set's annotations.
        classes: Names of the labels.
        palette: Colours of the labels, RGB from 0 to 255.
        out: Image file to write.
        count: Number of images, evenly spaced in the predictions.
        score_thr: Minimum score of a drawn prediction, in [0, 1].

    Returns:
        What could not be drawn, and why: images that cannot be read, masks that do not fit their image.

    Raises:
        ValueError: The predictions belong to another data set, or none of the images can be read.
        OSError: The picture cannot be written.
    """
    check_predictions(predictions, truth, classes)
    labels = {
        category['id']: classes.index(name) for category in truth.cats.values() if (name := category['name']) in classes
    }
    notes: list[str] = []
    images = []
    for prediction in evenly_spaced(predictions, count):
        try:
            image = read_image(prediction['img_path'])[..., ::-1]
        except ValueError as error:
            notes.append(str(error))
            continue
        size = image.shape[:2]
        known = _annotated(truth, prediction['img_id'], size, labels)
        found = _predicted(prediction, score_thr)
        notes += _misfits(prediction, truth.imgs[prediction['img_id']], size, [*known, *found])
        images.append((image, _fitting(known, size), _fitting(found, size)))
    if not images:
        raise ValueError('; '.join(notes[:3]) or 'there are no predictions')

    pairs = 2 if len(images) > 1 else 1
    rows = -(-len(images) // pairs)
    slope = max(image.shape[0] / image.shape[1] for image, _, _ in images)
    height = _PANEL * (np.clip(slope, _SLIMMEST, 1 / _SLIMMEST) + 0.1)
    # Not with pyplot, which keeps figures that could not be drawn.
    figure = Figure(figsize=(2 * pairs * _PANEL, rows * height))
    axes = figure.subplots(rows, 2 * pairs, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for place, (image, known, found) in enumerate(images):
        left, right = axes[place // pairs, 2 * (place % pairs) : 2 * (place % pairs) + 2]
        _draw(left, image, 'truth', known, classes, palette)
        _draw(right, image, 'prediction', found, classes, palette)
    figure.tight_layout(pad=0.4)
    figure.savefig(out, dpi=110)
    return notes


def _predicted(prediction: dict, score_thr: float) -> list[Drawn]:
    found = prediction['pred_instances']
    boxes = np.asarray(found['bboxes'], float)
    masks = found.get('masks')
    return [
        Drawn(
            int(found['labels'][i]),
            [*boxes[i, :2], *(boxes[i, 2:4] - boxes[i, :2])],
            None if masks is None else coco_mask.decode(masks[i]),
            float(found['scores'][i]),
        )
        for i in range(len(boxes))
        if found['scores'][i] >= score_thr
    ]


def _annotated(truth: COCO, image_id: int, size: tuple[int, int], labels: dict[int, int]) -> list[Drawn]:
    return [
        Drawn(labels[a['category_id']], a['bbox'], _truth_mask(a.get('segmentation'), size), None)
        for a in truth.imgToAnns.get(image_id, ())
        if a.get('category_id') in labels and len(a.get('bbox') or ()) == 4 and not a.get('iscrowd')
    ]


def _truth_mask(segmentation: list | dict | None, size: tuple[int, int]) -> np.ndarray | None:
    """The mask (H, W) of an annotation, if it has one. Polygons are filled at the image's own size, as for training."""
    if isinstance(segmentation, dict):
        packed = segmentation
        if isinstance(packed['counts'], list):
            packed = coco_mask.frPyObjects(packed, *packed['size'])
        return coco_mask.decode(packed)
    # With fewer points there is no area, and pycocotools would read it as a box.
    polygons = [polygon for polygon in segmentation or () if len(polygon) >= 6]
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *size))) if polygons else None


def _fitting(objects: Sequence[Drawn], size: tuple[int, int]) -> list[Drawn]:
    """The objects, without masks of another size than the image's (H, W)."""
    return [drawn if drawn.mask is None or drawn.mask.shape == size else drawn._replace(mask=None) for drawn in objects]


def _misfits(prediction: dict, record: dict, size: tuple[int, int], objects: Sequence[Drawn]) -> list[str]:
    """A message if the size (H, W) of an image differs from that of the annotations or predictions."""
    sizes = {
        'annotations': (record.get('height'), record.get('width')),
        'predictions': tuple(prediction.get('ori_shape', ()))[:2],
    }
    others = [f'{s[1]} x {s[0]} in the {of}' for of, s in sizes.items() if all(s) and len(s) == 2 and s != size]
    masks = sum(drawn.mask is not None and drawn.mask.shape != size for drawn in objects)
    if not others and not masks:
        return []
    note = f'{prediction["img_path"]} has {size[1]} x {size[0]} pixels'
    if others:
        note += f', but {" and ".join(others)}'
    return [f'{note}; {masks} masks do not fit it and are not drawn' if masks else note]


def draw_detections(
    image: np.ndarray,
    objects: Sequence[Drawn],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    out: str | Path,
) -> None:
    """Draw objects on a single image. Small images are enlarged, so that labels have room. The longer side has at most
    8192 pixels.

    Args:
        image: (H, W, 3), RGB, uint8.
        objects: The objects to draw.
        classes: Names of the labels.
        palette: Colours of the labels, RGB from 0 to 255.
        out: Image file to write.

    Raises:
        OSError: It cannot be written.
    """
    height, width = image.shape[:2]
    scale = _LONGEST / max(height, width)
    # Not with pyplot, which keeps figures that could not be drawn.
    figure = Figure(figsize=[max(side * scale, _SHORTEST) for side in (width, height)])
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    _draw(axis, image, '', objects, classes, palette)
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    figure.savefig(out, dpi=min(max(_LEAST_DPI, round(1 / scale)), _MOST_PIXELS // _LONGEST))


def paint_detections(
    image: np.ndarray, objects: Sequence[Drawn], classes: Sequence[str], palette: Sequence[Sequence[int]]
) -> np.ndarray:
    """Draw objects on a frame of a video, which keeps its size.

    Args:
        image: (H, W, 3), RGB, uint8.
        objects: The objects to draw.
        classes: Names of the labels.
        palette: Colours of the labels, RGB from 0 to 255.

    Returns:
        (H, W, 3), RGB, uint8. Without objects it is ``image``.
    """
    if not objects:
        return image
    height, width = image.shape[:2]
    dpi = max(_LEAST_DPI, max(height, width) / _LONGEST)
    # The canvas rounds down: 641 / 100 * 100 may be 640.99.
    figure = Figure(figsize=((width + _MARGIN) / dpi, (height + _MARGIN) / dpi), dpi=dpi)
    canvas = FigureCanvasAgg(figure)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    _draw(axis, image, '', objects, classes, palette)
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), aspect='auto')
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _tint(image: np.ndarray, objects: Sequence[Drawn], colours: Sequence[np.ndarray]) -> np.ndarray:
    """The image (H, W, 3), uint8, with the masks drawn over it."""
    # In 8 bits, and only inside the masks: large images in float64 do not fit into memory.
    tinted = image.copy()
    for drawn, colour in zip(objects, colours, strict=True):
        if drawn.mask is not None:
            inside = np.asarray(drawn.mask, bool)
            tinted[inside] = 0.65 * tinted[inside] + 0.35 * 255 * colour
    return tinted


def _draw(
    axis: Axes,
    image: np.ndarray,
    title: str,
    objects: Sequence[Drawn],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> None:
    """Draw objects on an image (H, W, 3), RGB."""
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
        # Inside the image, whatever the box.
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
    write_plainly(axis, classes)
