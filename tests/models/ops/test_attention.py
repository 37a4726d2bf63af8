"""The fused kernel in parts: the same attention and gradients, on every thread."""

import pytest
import torch
import torch.nn.functional as F

from mmgrc.models.ops import use_ops
from mmgrc.models.ops.attention import _count_parts, attend, attend_tokens


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize('masked_out', [0.0, 1.0])
@pytest.mark.parametrize('number', [1, 2, 3])
@pytest.mark.parametrize(('batch', 'heads', 'length'), [(1, 1, 60), (2, 1, 60), (1, 5, 60), (3, 2, 7), (1, 1, 1)])
def test_equals_pytorch(threads, batch, heads, length, number, masked_out):
    """Heads in the layers' layout, against one call in float64. A dropout of 1 leaves zeros."""
    threads(number)
    torch.manual_seed(0)
    x, grad = torch.randn(batch, length, heads, 8), torch.randn(batch, heads, length, 8)
    key, value = torch.randn(batch, heads, 11, 8), torch.randn(batch, heads, 11, 8)
    results = []
    for function, dtype in ((attend, torch.float32), (F.scaled_dot_product_attention, torch.float64)):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in (x, key, value)]
        out = function(leaves[0].transpose(1, 2), *leaves[1:], *([masked_out] if function is attend else []))
        out = out * (1 - masked_out) if function is not attend else out
        results.append([out.detach(), *torch.autograd.grad(out, leaves, grad.to(dtype))])
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ('heads', 'length', 'number', 'parts'),
    [(1, 60, 1, 1), (1, 60, 2, 2), (2, 60, 2, 1), (5, 60, 2, 2), (3, 60, 2, 2), (1, 7, 2, 1), (1, 64, 12, 8)],
)
def test_parts_leave_no_thread_idle(heads, length, number, parts):
    assert _count_parts(heads, length, number) == parts


@pytest.mark.parametrize(('gradients', 'batch'), [(True, 2), (False, 1)])
def test_a_single_head_is_split_for_gradients_alone(threads, gradients, batch):
    threads(2)
    query, key = torch.randn(1, 1, 60, 8, requires_grad=gradients), torch.randn(1, 1, 11, 8)
    with use_ops('fast'), torch.profiler.profile(record_shapes=True) as profile, torch.set_grad_enabled(gradients):
        attend(query, key, key)
    calls = [event for event in profile.events() if event.name == 'aten::scaled_dot_product_attention']
    assert [call.input_shapes[0][0] for call in calls] == [batch]


@pytest.mark.parametrize(('tokens', 'batch'), [(3000, 1), (3000, 2), (50, 1)])
@pytest.mark.parametrize('mode', ['fast-onednn', 'fast-mkl'])
def test_queries_of_tokens(tokens, batch, mode):
    torch.manual_seed(0)
    heads, keys, channels = 2, 70, 32
    x, weight, bias = torch.randn(batch, tokens, 64), torch.randn(64, 64) / 8, torch.randn(64)
    key, value = (torch.randn(batch, heads, keys, channels) for _ in range(2))
    grad = torch.randn(batch, tokens, heads * channels)
    results = []
    for dtype in (torch.float32, torch.float64):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in (x, weight, bias, key, value)]
        with use_ops(mode):
            if dtype == torch.float32:
                out = attend_tokens(*leaves)
            else:
                query = F.linear(*leaves[:3]).unflatten(2, (heads, channels)).transpose(1, 2)
                out = F.scaled_dot_product_attention(query, *leaves[3:]).transpose(1, 2).flatten(2)
            results.append([out.detach(), *torch.autograd.grad(out, leaves, grad.to(dtype))])
    for ours, exact in zip(*results, strict=True):
        scale = max(1.0, float(exact.abs().max()))
        torch.testing.assert_close(ours, exact.float(), rtol=1e-4, atol=2e-5 * scale)
