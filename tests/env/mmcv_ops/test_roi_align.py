"""RoIAlign, compared with its definition in plain loops and with mmcv's compiled op if available."""

import itertools
import math

import pytest
import torch
from mmcv.ops import roi_align
from torch.autograd import gradcheck

from mmgrc.env.mmcv_ops import roi_align as own
from mmgrc.env.mmcv_ops.extension import MissingOpError

# Regions in images of 40 x 24 pixels, whose maps have a quarter of that size. The regions are: inside the image, across
# its borders (two), outside, the whole image, thinner than a cell, without width, and without area.
ROIS = [
    [0, 3.0, 4.0, 21.0, 19.0],
    [1, -6.0, -3.0, 9.0, 12.0],
    [1, 30.0, 15.0, 47.0, 30.0],
    [0, 60.0, 50.0, 70.0, 58.0],
    [1, 0.0, 0.0, 40.0, 24.0],
    [0, 11.3, 7.1, 12.0, 8.9],
    [0, 5.0, 6.0, 5.0, 13.0],
    [1, 9.0, 9.0, 9.0, 9.0],
]
KINDS = list(itertools.product((True, False), (0, 2)))


def by_definition(features, rois, bins, scale, samples, aligned):
    """Average the bilinear interpolations at the samples of each bin, one by one."""
    _, channels, height, width = features.shape
    output = features.new_zeros(len(rois), channels, *bins)
    for n, (image, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (corner * scale - 0.5 * aligned for corner in corners)
        roi_height, roi_width = y2 - y1, x2 - x1
        if not aligned:
            roi_height, roi_width = max(roi_height, 1), max(roi_width, 1)
        bin_height, bin_width = roi_height / bins[0], roi_width / bins[1]
        down, across = samples or math.ceil(bin_height), samples or math.ceil(bin_width)
        for i, j in itertools.product(*map(range, bins)):
            for k, m in itertools.product(range(down), range(across)):
                y = y1 + (i + (k + 0.5) / down) * bin_height
                x = x1 + (j + (m + 0.5) / across) * bin_width
                if -1 <= y <= height and -1 <= x <= width:
                    value = interpolated(features[int(image)], y, x)
                    output[n, :, i, j] += value / (down * across)
    return output


def interpolated(image, y, x):
    y, x = min(max(y, 0), image.shape[1] - 1), min(max(x, 0), image.shape[2] - 1)
    near = itertools.product({math.floor(y), math.ceil(y)}, {math.floor(x), math.ceil(x)})
    return sum(image[:, row, column] * (1 - abs(y - row)) * (1 - abs(x - column)) for row, column in near)


def inputs(dtype=torch.float64, channels=3):
    torch.manual_seed(0)
    return torch.randn(2, channels, 6, 10, dtype=dtype), torch.tensor(ROIS, dtype=dtype)


@pytest.mark.parametrize(('aligned', 'samples'), KINDS)
@pytest.mark.parametrize('bins', [(3, 2), (1, 1)])
def test_forward_is_the_definition(ops, bins, aligned, samples):
    features, rois = inputs()
    output = roi_align(features, rois, bins, 0.25, samples, 'avg', aligned)
    expected = by_definition(features, rois, bins, 0.25, samples, aligned)
    assert expected.abs().amax((1, 2, 3)).count_nonzero() >= 5
    torch.testing.assert_close(output, expected)


def test_maps_of_one_row_and_one_column(ops):
    _, rois = inputs()
    for shape in ((2, 1, 1, 10), (2, 1, 6, 1), (2, 1, 1, 1)):
        features = torch.randn(shape, dtype=torch.float64)
        output = roi_align(features, rois, (2, 2), 0.25, 2, 'avg', True)
        torch.testing.assert_close(output, by_definition(features, rois, (2, 2), 0.25, 2, True))


@pytest.mark.parametrize(('aligned', 'samples'), KINDS)
def test_gradients(ops, aligned, samples):
    features, rois = inputs(channels=1)
    features.requires_grad_()
    assert gradcheck(lambda x: roi_align(x, rois, (2, 3), 0.25, samples, 'avg', aligned), [features])


def test_a_gradient_that_is_not_contiguous(ops):
    features, rois = inputs()
    grads = []
    for weights in (torch.arange(6.0).double().view(2, 3), torch.arange(6.0).double().view(2, 3).t().contiguous().t()):
        x = features.clone().requires_grad_()
        (roi_align(x, rois, (2, 3), 0.25) * weights).sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize('samples', [0, 2])
def test_regions_that_are_not_finite_give_zeros(samples):
    features, rois = inputs()
    rois[0, 1], rois[1, 3:], rois[2, 1:] = math.nan, math.inf, -math.inf
    output = features.new_full((len(rois), 3, 2, 2), 7)
    own.forward(features, rois, output, own.Geometry((2, 2), 0.25, samples, True))
    assert not output[:3].any()
    assert output[4].any()


def test_no_regions(ops):
    features, rois = inputs()
    features.requires_grad_()
    output = roi_align(features, rois[:0], (2, 2), 0.25)
    assert output.shape == (0, 3, 2, 2)
    output.sum().backward()
    assert not features.grad.any()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(ops, dtype):
    """The result is that of single precision on the same numbers, rounded at the end."""
    halves, rois = (x.to(dtype).requires_grad_() for x in inputs())
    singles = halves.detach().float().requires_grad_()
    output = roi_align(halves, rois, (3, 2), 0.25)
    expected = roi_align(singles, rois.float(), (3, 2), 0.25)
    assert output.dtype == dtype
    torch.testing.assert_close(output, expected.to(dtype))
    output.sum().backward()
    expected.sum().backward()
    assert halves.grad.dtype == dtype
    torch.testing.assert_close(halves.grad, singles.grad.to(dtype))


def test_many_regions_are_taken_in_groups(monkeypatch, ops):
    features, rois = inputs()
    results = []
    for at_once in (own._BINS_AT_ONCE, 12):
        monkeypatch.setattr(own, '_BINS_AT_ONCE', at_once)
        x = features.clone().requires_grad_()
        output = roi_align(x, rois, (2, 2), 0.25)
        (output**2).sum().backward()
        results.append((output, x.grad))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


def test_maximum_is_not_there(ops):
    features, rois = inputs()
    with pytest.raises(MissingOpError, match=r"roi_align with pool_mode='max' .* make env-full"):
        roi_align(features, rois, (2, 2), 0.25, 0, 'max', True)


def call(ops, features, rois, bins, aligned, samples):
    """Run the forward and backward pass of an extension module."""
    settings = {
        'aligned_height': bins[0],
        'aligned_width': bins[1],
        'spatial_scale': 0.25,
        'sampling_ratio': samples,
        'pool_mode': 1,
        'aligned': aligned,
    }
    none = features.new_zeros(0)
    output = features.new_zeros(len(rois), features.shape[1], *bins)
    ops.roi_align_forward(features, rois, output, none, none, **settings)
    grad = torch.zeros_like(features)
    torch.manual_seed(1)
    ops.roi_align_backward(torch.randn_like(output), rois, none, none, grad, **settings)
    return output, grad


@pytest.mark.parametrize(('aligned', 'samples'), KINDS)
@pytest.mark.parametrize('bins', [(7, 7), (14, 14)])
def test_as_compiled(ops, compiled, bins, aligned, samples):
    torch.manual_seed(0)
    features = torch.randn(2, 32, 50, 60)
    corners = torch.rand(200, 2) * torch.tensor([240.0, 200.0]) - 10
    rois = torch.cat((torch.arange(200)[:, None] % 2, corners, corners + torch.rand(200, 2) * 100), 1)
    for found, expected in zip(
        call(ops, features, rois, bins, aligned, samples),
        call(compiled, features, rois, bins, aligned, samples),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    for found, expected in zip(
        call(ops, features, rois[:0], bins, aligned, samples),
        call(compiled, features, rois[:0], bins, aligned, samples),
        strict=True,
    ):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(('aligned', 'samples'), KINDS)
def test_as_compiled_in_half_precision(ops, compiled, aligned, samples):
    """The compiled op places its samples in half precision. So corners are whole cells, and sums are short."""
    features, _ = inputs(torch.float16)
    rois = torch.tensor([[0, 4, 4, 20, 20], [1, 0, 0, 32, 16], [1, 8, 8, 40, 24]], dtype=torch.float16)
    for found, expected in zip(
        call(ops, features, rois, (2, 2), aligned, samples),
        call(compiled, features, rois, (2, 2), aligned, samples),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, atol=5e-3, rtol=5e-3)
