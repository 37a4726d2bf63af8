"""Non-maximum suppression without compiled ops: the twins of mmcv's.

They are many small steps, which a GPU and PyTorch's threads only slow down: NumPy does them, on one core. Corners of N
boxes are an array ``(4, N)`` here, with rows x1, y1, x2, y2.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

__all__ = ['nms', 'softnms']

# How many boxes are compared with others at once, and from how many on those are told apart that cannot meet.
_BLOCK, _PART = 64, 512


@np.errstate(invalid='ignore', divide='ignore')
def _overlaps(corners: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of each of N boxes with each of M: ``(N, M)``. Of two boxes without area it is NaN."""
    (a1, b1, a2, b2), (x1, y1, x2, y2) = corners[:, :, None], others
    shared = np.minimum(a2, x2) - np.maximum(a1, x1)
    height = np.minimum(b2, y2) - np.maximum(b1, y1)
    # In place: most of the time goes into newly allocated memory.
    shared = np.maximum(shared, 0, out=shared)
    shared *= np.maximum(height, 0, out=height)
    union = np.add((a2 - a1) * (b2 - b1), (x2 - x1) * (y2 - y1), out=height)
    union -= shared
    return np.divide(shared, union, out=shared)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Keep the best box, drop those that overlap it by more than the threshold, go on with what is left.

    Args:
        boxes: Corners ``(x1, y1, x2, y2)`` of N boxes, shape ``(N, 4)``.
        scores: Scores of shape ``(N,)``.
        iou_threshold: The largest intersection over union of two boxes that both stay.

    Returns:
        Indices of the boxes that stay, the best first.
    """
    order = scores.sort(descending=True)[1]
    corners = np.ascontiguousarray(boxes[order].t().cpu().float().numpy())
    threshold = np.float32(iou_threshold)
    stays = np.zeros(len(order), bool)
    for part in _parts(corners):
        stays[part[_stay(corners[:, part], threshold)]] = True
    return order[torch.from_numpy(stays).to(order.device)]


def _parts(corners: np.ndarray) -> Iterator[np.ndarray]:
    """Indices of boxes that meet no box of another part: classes and levels, which mmcv moves away from each other."""
    order = corners[0].argsort(kind='stable')
    gaps = corners[0][order[1:]] > np.maximum.accumulate(corners[2][order[:-1]])
    start = 0
    for end in (*(gaps.nonzero()[0] + 1), len(order)):
        if end - start >= _PART or end == len(order):
            yield np.sort(order[start:end])
            start = end


def _stay(corners: np.ndarray, threshold: np.float32) -> np.ndarray:
    """Indices of the boxes that stay, of boxes that are sorted by their scores."""
    left = np.arange(corners.shape[1])
    kept = [left[:0]]
    while len(left):
        block, left = left[:_BLOCK], left[_BLOCK:]
        hides = np.triu(_overlaps(corners[:, block], corners[:, block]) > threshold, 1)
        stays = np.ones(len(block), bool)
        for i in range(len(block)):
            if stays[i]:
                stays &= ~hides[i]
        kept.append(block[stays])
        left = left[~(_overlaps(corners[:, kept[-1]], corners[:, left]) > threshold).any(0)]
    return np.concatenate(kept)


def softnms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, sigma: float, min_score: float, method: int
) -> tuple[Tensor, Tensor]:
    """Take the best box, lower the scores of those that overlap it, go on with what is left.

    Args:
        boxes: Corners ``(x1, y1, x2, y2)`` of N boxes, shape ``(N, 4)``.
        scores: Scores of shape ``(N,)``.
        iou_threshold: The overlap from which methods 0 and 1 lower a score.
        sigma: The width of method 2.
        min_score: A box whose score is lowered below it is dropped.
        method: 0: to zero, 1: times 1 - IoU, 2: times exp(-IoU² / sigma).

    Returns:
        Indices of the boxes that stay, in the order in which they were taken, and their lowered scores.
    """
    corners, lowered = boxes.t().cpu().float().numpy(), scores.cpu().float().numpy().copy()
    left = np.arange(len(lowered))
    taken = []
    while len(left):
        best = left[lowered[left].argmax()]
        taken.append(best)
        left = left[left != best]
        (overlap,) = _overlaps(corners[:, [best]], corners[:, left])
        if method == 2:
            factor = np.exp(-(overlap * overlap) / np.float32(sigma))
        else:
            factor = np.where(overlap >= np.float32(iou_threshold), 1 - overlap if method == 1 else 0, 1)
        lowered[left] *= factor
        left = left[lowered[left] >= np.float32(min_score)]
    indices = torch.tensor(taken, dtype=torch.long, device=boxes.device)
    return indices, torch.from_numpy(lowered).to(scores)[indices]
