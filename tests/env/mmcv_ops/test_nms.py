"""NMS and soft NMS, compared with their definitions in plain loops and with mmcv's compiled ops if available."""

import math

import numpy as np
import pytest
import torch
from mmcv.ops import batched_nms, nms, soft_nms

from mmgrc.env.mmcv_ops import nms as own


def overlap(a, b, offset=0):
    """Compute the IoU of two boxes, in single precision like mmcv. It is 0 if both have no area."""
    offset = np.float32(offset)
    width, height = (max(min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + offset, np.float32(0)) for i in (0, 1))
    areas = [(x[2] - x[0] + offset) * (x[3] - x[1] + offset) for x in (a, b)]
    return width * height / (areas[0] + areas[1] - width * height) if any(areas) else np.float32(0)


def nms_by_definition(boxes, scores, threshold, offset=0):
    boxes, kept = boxes.numpy(), []
    for i in scores.argsort(descending=True).tolist():
        if all(overlap(boxes[i], boxes[k], offset) <= np.float32(threshold) for k in kept):
            kept.append(i)
    return kept


def soft_nms_by_definition(boxes, scores, threshold, sigma, least, method, offset):
    boxes, scores, left, taken = boxes.numpy(), scores.tolist(), list(range(len(boxes))), []
    while left:
        best = max(left, key=lambda i: scores[i])
        left.remove(best)
        taken.append(best)
        for i in left:
            iou = float(overlap(boxes[best], boxes[i], offset))
            scores[i] *= {
                'naive': 0 if iou >= threshold else 1,
                'linear': 1 - iou if iou >= threshold else 1,
                'gaussian': math.exp(-(iou**2) / sigma),
            }[method]
        left = [i for i in left if scores[i] >= least]
    return taken, [scores[i] for i in taken]


def crowd(count, size=300.0, seed=0):
    """Return boxes, many of which overlap strongly, with scores that are all different."""
    torch.manual_seed(seed)
    middle = (torch.rand(max(count // 10, 1), 2) * size)[torch.randint(max(count // 10, 1), (count,))]
    corner = (middle + torch.randn(count, 2) * 4).clamp(min=0)
    boxes = torch.cat((corner, corner + 20 + torch.rand(count, 2) * 20), 1)
    return boxes, (torch.randperm(count) + 1) / (count + 1)


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.3, 0.5, 0.7])
def test_nms_is_the_definition(ops, threshold, offset):
    boxes, scores = crowd(80)
    dets, kept = nms(boxes, scores, threshold, offset)
    assert kept.tolist() == nms_by_definition(boxes, scores, threshold, offset)
    assert 5 < len(kept) < 80
    assert torch.equal(dets, torch.cat((boxes, scores[:, None]), 1)[kept])


def test_an_overlap_of_just_the_threshold_stays(ops):
    # Boxes that cover 7, 5 and 3 of 10 columns, and boxes without area.
    boxes = torch.tensor([[0, 0, 10, 1], [0, 0, 7, 1], [0, 0, 5, 1], [0, 0, 3, 1], [2, 2, 2, 2], [2, 2, 2, 2]]).float()
    scores = torch.linspace(0.9, 0.1, 6)
    for threshold in (0.3, 0.5, 0.7):
        assert nms(boxes, scores, threshold)[1].tolist() == nms_by_definition(boxes, scores, threshold)


def test_best_boxes_and_those_above_a_score(ops):
    boxes, scores = crowd(80)
    kept = nms_by_definition(boxes, scores, 0.5)
    assert nms(boxes, scores, 0.5, max_num=5)[1].tolist() == kept[:5]
    assert nms(boxes, scores, 0.5, score_threshold=0.5)[1].tolist() == [i for i in kept if scores[i] > 0.5]


def test_each_class_on_its_own(ops, monkeypatch):
    """mmcv moves classes apart, so each can be a part of several blocks."""
    monkeypatch.setattr(own, '_PART', 50)
    monkeypatch.setattr(own, '_BLOCK', 16)
    boxes, scores = crowd(240)
    labels = torch.arange(240) % 3
    assert len(list(own._parts((boxes + 400 * labels[:, None]).t().numpy()))) == 3
    _, kept = batched_nms(boxes, scores, labels, {'type': 'nms', 'iou_threshold': 0.5})
    for label in range(3):
        (members,) = (labels == label).nonzero(as_tuple=True)
        expected = members[nms_by_definition(boxes[members], scores[members], 0.5)]
        assert kept[labels[kept] == label].tolist() == expected.tolist()
    assert scores[kept].tolist() == sorted(scores[kept].tolist(), reverse=True)


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
@pytest.mark.parametrize('offset', [0, 1])
def test_soft_nms_is_the_definition(ops, method, offset):
    boxes, scores = crowd(80)
    # Boxes without area, such as those that were clipped at the border of an image.
    boxes[:3, 2] = boxes[:3, 0]
    dets, kept = soft_nms(boxes, scores, 0.3, 0.5, 0.05, method, offset)
    indices, lowered = soft_nms_by_definition(boxes, scores, 0.3, 0.5, 0.05, method, offset)
    assert kept.tolist() == indices
    assert 5 < len(kept) < 80
    torch.testing.assert_close(dets, torch.cat((boxes[kept], torch.tensor(lowered)[:, None]), 1))


def test_no_boxes(ops):
    boxes, scores = torch.zeros(0, 4), torch.zeros(0)
    for function in (nms, soft_nms):
        dets, kept = function(boxes, scores, 0.5)
        assert dets.shape == (0, 5)
        assert kept.shape == (0,)
        assert kept.dtype == torch.long
    assert nms(*crowd(1), 0.5)[1].tolist() == [0]


def test_half_precision(ops):
    boxes, scores = (x.half() for x in crowd(150))
    assert nms(boxes, scores, 0.5)[1].tolist() == nms(boxes.float(), scores.float(), 0.5)[1].tolist()


@pytest.mark.parametrize('threshold', [0.3, 0.5, 0.7])
@pytest.mark.parametrize(('classes', 'offset'), [(1, 0), (1, 1), (5, 0), (80, 0)])
def test_as_compiled(ops, compiled, threshold, classes, offset):
    boxes, scores = crowd(2000)
    boxes = boxes + 400 * (torch.arange(2000) % classes)[:, None]
    settings = {'iou_threshold': threshold, 'offset': offset}
    found, expected = (extension.nms(boxes, scores, **settings) for extension in (ops, compiled))
    assert torch.equal(found, expected)
    assert torch.equal(ops.nms(boxes[:0], scores[:0], **settings), compiled.nms(boxes[:0], scores[:0], **settings))


@pytest.mark.parametrize('method', [0, 1, 2])
@pytest.mark.parametrize('offset', [0, 1])
def test_soft_nms_as_compiled(ops, compiled, method, offset):
    boxes, scores = crowd(300)
    results = []
    for extension in (ops, compiled):
        dets = boxes.new_empty(300, 5)
        settings = {'iou_threshold': 0.3, 'sigma': 0.5, 'min_score': 0.01, 'method': method, 'offset': offset}
        kept = extension.softnms(boxes, scores, dets, **settings)
        results.append((kept, dets[: len(kept)]))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])
