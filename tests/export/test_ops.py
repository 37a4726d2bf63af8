"""NMS and RoIAlign of the export: PyTorch's contract of operators, and onnxruntime's results against mmcv's."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim

from mmgrc.export.ops import ABSENT, nms, onnx_translations, roi_align


def random_boxes(*shape):
    torch.manual_seed(0)
    corner = torch.rand(*shape, 2) * 80 - 10
    return torch.cat([corner, corner + torch.rand(*shape, 2) * 60], -1)


def random_rois(number):
    return torch.cat([torch.arange(number)[:, None] % 2, random_boxes(number)], 1).float()


def overlap(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b)) - shared)


def keep_plainly(boxes, scores, threshold, number):
    """NMS by its definition."""
    kept = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if scores[i] >= 0 and all(overlap(boxes[i], boxes[k]) <= threshold for k in kept):
            kept.append(i)
    return set(kept[:number])


class Suppress(nn.Module):
    def forward(self, boxes, scores):
        return nms(boxes, scores, 0.4, 20)


class Align(nn.Module):
    def __init__(self, samples, aligned):
        super().__init__()
        self.options = (5, 7, 0.25, samples, aligned)

    def forward(self, features, rois):
        return roi_align(features, rois, *self.options)


def session(model, inputs, shapes, path):
    program = torch.export.export(model, inputs, dynamic_shapes=shapes)
    torch.onnx.export(program, f=path, dynamo=True, verbose=False, custom_translation_table=onnx_translations())
    return onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])


def test_pytorchs_contract_of_operators():
    torch.library.opcheck(nms, (random_boxes(2, 9), torch.rand(2, 9), 0.5, 3))
    torch.library.opcheck(roi_align, (torch.rand(2, 3, 8, 8), random_rois(5), 5, 7, 0.25, 0, True))


def test_nms_in_onnx(tmp_path):
    boxes, scores = random_boxes(2, 300), torch.rand(2, 300)
    scores[:, ::3] = ABSENT
    run = session(Suppress(), (boxes, scores), ({0: Dim('b'), 1: Dim('k')}, {0: Dim('b'), 1: Dim('k')}), tmp_path / 'm')
    for b, s in ((boxes, scores), (boxes[:1], scores[:1]), (boxes, torch.full_like(scores, ABSENT))):
        (kept,) = run.run(None, {'boxes': b.numpy(), 'scores': s.numpy()})
        assert kept.dtype == bool
        np.testing.assert_array_equal(kept, nms(b, s, 0.4, 20).numpy())
        for image in range(len(b)):
            assert set(np.flatnonzero(kept[image])) == keep_plainly(b[image].tolist(), s[image].tolist(), 0.4, 20)


@pytest.mark.parametrize(('samples', 'aligned'), [(0, True), (0, False), (2, True)])
def test_roi_align_in_onnx(samples, aligned, tmp_path):
    features, rois = torch.rand(2, 3, 20, 24), random_rois(9)
    model = Align(samples, aligned)
    run = session(model, (features, rois), ({0: Dim('b'), 2: Dim('h'), 3: Dim('w')}, {0: Dim('n')}), tmp_path / 'm')
    for x, r in ((features, rois), (torch.rand(2, 3, 11, 40), random_rois(30)), (features, rois[:0])):
        (found,) = run.run(None, {'features': x.numpy(), 'rois': r.numpy()})
        np.testing.assert_allclose(found, model(x, r).numpy(), atol=1e-5)
