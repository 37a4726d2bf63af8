"""The linear layer equals PyTorch's, forward and gradients, as a convolution or not."""

import pytest
import torch
import torch.nn.functional as F

from mmgrc.models.ops import use_ops
from mmgrc.models.ops.linear import linear


@pytest.fixture(autouse=True, params=['fast-onednn', 'fast-mkl'])
def mode(request):
    """Both matrix products, whatever is faster on this machine."""
    with use_ops(request.param):
        yield request.param


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('shape', [(2, 700, 24), (40, 49, 24), (1, 3, 24)])
def test_equals_pytorch(shape, bias):
    torch.manual_seed(0)
    x, weight, grad = torch.randn(shape), torch.randn(40, 24), torch.randn(*shape[:-1], 40)
    arguments = [x, weight, *([torch.randn(40)] if bias else [])]
    results = []
    for function, dtype in ((linear, torch.float32), (F.linear, torch.float64)):
        leaves = [argument.detach().to(dtype).requires_grad_() for argument in arguments]
        out = function(*leaves)
        out.backward(grad.to(dtype))
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact.float(), rtol=1e-5, atol=1e-3 if ours.shape[-1:] == (24,) else 1e-4)


def test_which_kernel_runs(mode):
    """A convolution for many rows of float32 on a CPU where that is faster. Otherwise the plain layer."""

    def operators(x, weight):
        with torch.profiler.profile() as profile:
            linear(x, weight)
        return {event.key for event in profile.key_averages()}

    many, few = torch.randn(4000, 16), torch.randn(10, 16)
    weight = torch.randn(8, 16)
    assert ('aten::conv2d' if mode == 'fast-onednn' else 'aten::linear') in operators(many, weight)
    assert 'aten::linear' in operators(few, weight)
    assert 'aten::linear' in operators(many.double(), weight.double())
    with torch.autocast('cpu', torch.bfloat16):
        assert 'aten::linear' in operators(many, weight)


def test_a_slice_and_a_sum_in_place():
    """Channels that are not contiguous, and a result that is changed in place."""
    torch.manual_seed(0)
    x, weight = torch.randn(1, 2000, 32, requires_grad=True), torch.randn(16, 16)
    out = linear(x[..., :16], weight).add_(1)
    assert out.is_contiguous()
    out.sum().backward()
    torch.testing.assert_close(out, F.linear(x[..., :16], weight) + 1)
    expected = torch.cat([weight.sum(0), torch.zeros(16)]).expand_as(x)
    torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-4)
