"""Chunks change neither outputs nor gradients, and store no wide map."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmgrc.models.ops import use_ops
from mmgrc.models.ops.chunks import in_chunks


@pytest.fixture(autouse=True, params=['fast-onednn', 'fast-mkl'])
def mode(request):
    """Both matrix products, whatever is faster on this machine."""
    with use_ops(request.param):
        yield request.param


@pytest.mark.parametrize('recompute', [True, False])
@pytest.mark.parametrize('shape', [(2, 5000, 6), (1, 2500, 6), (2, 60, 49, 6), (2, 100, 6)])
def test_equals_the_function(shape, recompute):
    """Two token tensors, a context for each image, and weights from outside, against one call in float64."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 64)
    x, y, shift = torch.randn(shape), torch.randn(shape), torch.randn(shape[0], 64)
    grad = torch.randn(*shape[:-1], 64)
    calls, results = [], []

    def function(x, y, shift):
        calls.append(x.shape)
        return F.gelu(layer(x * y)) + shift.view(-1, *[1] * (x.dim() - 2), 64)

    for chunked, dtype in ((True, torch.float32), (False, torch.float64)):
        layer = layer.to(dtype).requires_grad_()
        layer.zero_grad()
        leaves = [tensor.detach().to(dtype).clone().requires_grad_() for tensor in (x, y, shift)]
        calls.clear()
        # This width gives chunks of the smallest size, whatever the number of threads.
        out = (
            in_chunks(function, leaves[:2], leaves[2:], width=2**19, recompute=recompute)
            if chunked
            else function(*leaves)
        )
        if chunked:
            tokens = [call[1:-1].numel() for call in calls]
            assert sum(call[0] * n for call, n in zip(calls, tokens, strict=True)) == x[..., 0].numel()
            assert max(tokens) < 2 * 1024 * torch.get_num_threads() + 49 or len(calls) == 1
        (out.mul(grad.to(dtype)).sum()).backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves), *(p.grad.clone() for p in layer.parameters())])
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact.float(), rtol=1e-4, atol=1e-4 * max(1, float(exact.abs().max())))


def test_dropout_is_the_same_in_the_backward_pass():
    torch.manual_seed(0)
    x = torch.ones(1, 6000, 4, requires_grad=True)
    out = in_chunks(lambda chunk: chunk * 1, [x], width=2**19, then=lambda chunk: F.dropout(chunk, 0.5))
    out.sum().backward()
    assert 0.4 < (out == 0).float().mean() < 0.6
    torch.testing.assert_close(x.grad, out.detach())


@pytest.mark.parametrize('recompute', [True, False])
def test_stores_no_wide_map(recompute, mode):
    """The graph stores the tokens, or also the map that ``then`` begins with, but none of its inner maps."""
    least, most = (20000 * 8,) * 2 if mode == 'fast-onednn' and recompute else (20000 * 128, 20000 * (8 + 128))
    x, weight = torch.randn(1, 20000, 8, requires_grad=True), torch.randn(128, 8, requires_grad=True)
    stored = {}

    def store(tensor):
        stored[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(store, lambda tensor: tensor):
        out = in_chunks(
            lambda chunk: F.linear(chunk, weight),
            [x],
            width=128,
            then=lambda wide: F.gelu(wide).square().sum(2, keepdim=True),
            recompute=recompute,
        )
    assert least <= sum(stored.values()) <= most + weight.numel()
    out.sum().backward()
    exact = x.detach().double().requires_grad_()
    F.gelu(F.linear(exact, weight.double())).square().sum().backward()
    torch.testing.assert_close(x.grad, exact.grad.float(), rtol=1e-4, atol=1e-3)
