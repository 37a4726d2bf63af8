"""Patches as linear layers equal PyTorch's convolutions and MMDetection's layers, forward and gradients."""

import pytest
import torch
import torch.nn.functional as F
from mmdet.models import layers
from torch import nn

from mmgrc.models.layers.patches import PatchEmbed, PatchMerging
from mmgrc.models.ops.convolution import convolve_patches


def assert_same_gradients(inputs, grad, *runs):
    """Run each (function, modules) on one input, the last in float64, and return outputs and gradients."""
    results = []
    for number, (function, module) in enumerate(runs):
        dtype = torch.float64 if number == len(runs) - 1 else torch.float32
        module.to(dtype).requires_grad_()
        x = inputs.to(dtype).requires_grad_()
        out = function(x)
        grads = torch.autograd.grad(out, [x, *module.parameters()], grad.to(dtype))
        results.append([part.detach().float() for part in (out, *grads)])
    for result in results[:-1]:
        for ours, exact in zip(result, results[-1], strict=True):
            torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('last', [True, False], ids=['tokens', 'image'])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize(
    ('size', 'options'),
    [
        ((12, 8), {'kernel_size': 4, 'stride': 4}),
        ((13, 11), {'kernel_size': 4, 'stride': 4}),
        ((3, 9), {'kernel_size': 4, 'stride': 4}),
        ((12, 9), {'kernel_size': (2, 3), 'stride': (2, 3)}),
        ((12, 8), {'kernel_size': 3, 'stride': 2, 'padding': 1}),
        ((12, 8), {'kernel_size': 2, 'stride': 2, 'groups': 2}),
        ((12, 8), {'kernel_size': 2, 'stride': 2, 'dilation': 2}),
    ],
)
def test_equals_convolution(size, options, bias, last):
    """For a map in the layout of tokens or of an image. A map that is too small is padded first."""
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 10, bias=bias, **options)
    x = torch.randn(2, 6, *size)
    padding = [max(kernel - length, 0) for kernel, length in zip(conv.kernel_size, size, strict=True)]
    rows, cols = conv(F.pad(x, (0, padding[1], 0, padding[0]))).shape[2:]
    grad = torch.randn(2, rows * cols, 10)

    def ours(x):
        x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) if last else x
        tokens, hw_shape = convolve_patches(x, conv)
        assert hw_shape == (rows, cols)
        return tokens

    def exact(x):
        return conv(F.pad(x, (0, padding[1], 0, padding[0]))).flatten(2).mT

    assert_same_gradients(x, grad, (ours, conv), (exact, conv))


@pytest.mark.parametrize('norm', [{'type': 'LN'}, None])
@pytest.mark.parametrize('padding', ['corner', 0, 1])
def test_patch_embedding_equals_mmdetection(padding, norm):
    torch.manual_seed(0)
    stock = layers.PatchEmbed(3, 8, kernel_size=4, stride=4, padding=padding, norm_cfg=norm)
    ours = PatchEmbed(stock)
    assert ours.state_dict().keys() == stock.state_dict().keys()
    x = torch.randn(2, 3, 18, 13)
    expected, hw_shape = stock(x)
    assert ours(x)[1] == hw_shape
    runs = [(lambda x, run=run: run(x)[0], stock) for run in (ours, stock)]
    assert_same_gradients(x, torch.randn_like(expected), *runs)


@pytest.mark.parametrize('size', [(8, 6), (7, 5), (1, 1)])
@pytest.mark.parametrize(
    'options', [{}, {'norm_cfg': None, 'bias': True}, {'kernel_size': 3, 'stride': 3}, {'padding': 'same'}]
)
def test_patch_merging_equals_mmdetection(size, options):
    torch.manual_seed(0)
    stock = layers.PatchMerging(6, 10, **options)
    if stock.norm is not None:
        nn.init.normal_(stock.norm.weight)
        nn.init.normal_(stock.norm.bias)
    assert PatchMerging.fits(stock)
    ours = PatchMerging(stock)
    assert ours.state_dict().keys() == stock.state_dict().keys()
    x = torch.randn(2, size[0] * size[1], 6)
    expected, hw_shape = stock(x, size)
    assert ours(x, size)[1] == hw_shape
    runs = [(lambda x, run=run: run(x, size)[0], stock) for run in (ours, stock)]
    assert_same_gradients(x, torch.randn_like(expected), *runs)


@pytest.mark.parametrize(
    'options', [{'stride': 1}, {'padding': 1}, {'padding': 0}, {'dilation': 2}, {'norm_cfg': {'type': 'BN1d'}}]
)
def test_other_patch_merging_is_left_to_mmdetection(options):
    assert not PatchMerging.fits(layers.PatchMerging(6, 10, **options))
