"""The convolution in pairs of channels equals PyTorch's grouped convolution, forward and gradients."""

import pytest
import torch
from torch import nn

from mmgrc.models.ops import use_ops
from mmgrc.models.ops.convolution import convolve_tokens


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('groups', [24, 12, 6])
@pytest.mark.parametrize(('batch', 'rows', 'cols'), [(2, 30, 17), (1, 1, 3)])
def test_equals_pytorch(batch, rows, cols, groups, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(24, 24, 3, padding=1, groups=groups, bias=bias)
    x, grad = torch.randn(batch, rows * cols, 24), torch.randn(batch, rows * cols, 24)
    results = []
    for dtype in (torch.float32, torch.float64):
        conv, tokens = conv.to(dtype).requires_grad_(), x.to(dtype).requires_grad_()
        if dtype == torch.float32:
            out = convolve_tokens(tokens, (rows, cols), conv)
        else:
            out = conv(tokens.mT.unflatten(2, (rows, cols))).flatten(2).mT
        results.append([out.detach(), *torch.autograd.grad(out, [tokens, *conv.parameters()], grad.to(dtype))])
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact.float(), rtol=1e-5, atol=1e-4)


def test_which_kernel_runs():
    """Pairs in float32 and bfloat16 use the depthwise kernel. Everything else uses the layer itself."""

    def weights(conv, x):
        with use_ops('fast'), torch.profiler.profile(record_shapes=True) as profile:
            convolve_tokens(x, (10, 10), conv)
        return {tuple(event.input_shapes[1]) for event in profile.events() if event.name == 'aten::conv2d'}

    x = torch.randn(1, 100, 16)
    pairs, quads = (nn.Conv2d(16, 16, 3, padding=1, groups=n) for n in (8, 4))
    assert weights(pairs, x) == {(16, 1, 3, 3)}
    assert weights(quads, x) == {(16, 4, 3, 3)}
    with torch.autocast('cpu', torch.bfloat16):
        assert weights(pairs, x) == {(16, 1, 3, 3)}
    assert weights(pairs.double(), x.double()) == {(16, 2, 3, 3)}
