"""Non-maximum suppression without compiled ops, equivalent to mmcv's.

It consists of many small steps, which would be slower on a GPU or with PyTorch's threads. So it runs in NumPy, on one
core. Here, the corners of N boxes are an array ``(4, N)`` with rows x1, y1, x2, y2.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

__all__ = ['nms', 'softnms']

# Number of boxes that are compared with others at once, and the smallest number of boxes that are split off as a part.
_BLOCK, _PART = 64, 512


@np.errstate(invalid='ignore', divide='ignore')
def _overlaps(corners: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Compute the IoU of each of N boxes with each of M others, ``(N, M)``. For two boxes without area it is NaN."""
    (a1, b1, a2, b2), (x1, y1, x2, y2) = corners[:, :, None], others
    shared = np.minimum(a2, x2) - np.maximum(a1, x1)
    height = np.minimum(b2, y2) - np.maximum(b1, y1)
    # In place, because newly allocated memory takes most of the time.
    shared = np.maximum(shared, 0, out=shared)
    shared *= np.maximum(height, 0, out=height)
    union = np.add((a2 - a1) * (b2 - b1), (x2 - x1) * (y2 - y1), out=height)
    union -= shared
    return np.divide(shared, union, out=shared)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Keep the best box, drop the boxes that overlap it by more than the threshold, and repeat with the rest.

    Args:
        boxes: Corners ``(x1, y1, x2, y2)`` of N boxes, shape ``(N, 4)``.
        scores: Scores of shape ``(N,)``.
        iou_threshold: The largest IoU of two boxes that are both kept.

    Returns:
        Indices of the kept boxes, the best first.
    """
    order = scores.sort(descending=True)[1]
    corners = np.ascontiguousarray(boxes[order].t().cpu().float().numpy())
    threshold = np.float32(iou_threshold)
    stays = np.zeros(len(order), bool)
    for part in _parts(corners):
        stays[part[_stay(corners[:, part], threshold)]] = True
    return order[torch.from_numpy(stays).to(order.device)]


def _parts(corners: np.ndarray) -> Iterator[np.ndarray]:
    """Split the boxes into parts that do not overlap, and yield the indices of each.

    mmcv moves the boxes of different classes and levels apart, which makes such parts.
    """
    order = corners[0].argsort(kind='stable')
    gaps = corners[0][order[1:]] > np.maximum.accumulate(corners[2][order[:-1]])
    start = 0
    for end in (*(gaps.nonzero()[0] + 1), len(order)):
        if end - start >= _PART or end == len(order):
            yield np.sort(order[start:end])
            start = end


def _stay(corners: np.ndarray, threshold: np.float32) -> np.ndarray:
    """Return the indices of the kept boxes. The boxes must be sorted by score."""
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
    """Take the best box, lower the scores of the boxes that overlap it, and repeat with the rest.

    Args:
        boxes: Corners ``(x1, y1, x2, y2)`` of N boxes, shape ``(N, 4)``.
        scores: Scores of shape ``(N,)``.
        iou_threshold: Methods 0 and 1 lower a score from this IoU on.
        sigma: Width of method 2.
        min_score: A box is dropped if its score is lowered below this value.
        method: 0 sets the score to zero, 1 multiplies it by 1 - IoU, 2 by exp(-IoU² / sigma).

    Returns:
        Indices of the kept boxes in the order in which they were taken, and their lowered scores.
    """
    corners, lowered = boxes.t().cpu().float().numpy(), scores.cpu().float().numpy().copy()
    left = np.arange(len(lowered))
    taken = []
    while len(left):
        best = left[lowered[left].argmax()]
        taken.append(best)
        left = left[left != best]
        # Two boxes without area do not overlap. NaN would drop the other one.
        overlap = np.nan_to_num(_overlaps(corners[:, [best]], corners[:, left])[0])
        if method == 2:
            factor = np.exp(-(overlap * overlap) / np.float32(sigma))
        else:
            factor = np.where(overlap >= np.float32(iou_threshold), 1 - overlap if method == 1 else 0, 1)
        lowered[left] *= factor
        left = left[lowered[left] >= np.float32(min_score)]
    indices = torch.tensor(taken, dtype=torch.long, device=boxes.device)
    return indices, torch.from_numpy(lowered).to(scores)[indices]
