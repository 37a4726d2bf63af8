"""`torch.compile`: blocks without a graph break, the same numbers, and caches that are still committed."""

import pytest
import torch

from mmgrc.models.cache import CachedBlock
from tests.helpers.backbones import FAMILIES, TWO_STAGES, assert_same, build, caches, loss

family = pytest.mark.parametrize('family', FAMILIES)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


@pytest.mark.slow
@family
@pytest.mark.parametrize('with_cp', [False, True])
def test_blocks_have_no_graph_break(family, with_cp):
    backbone = build(family, with_cp=with_cp, **TWO_STAGES[family])
    calls = []
    for module in backbone.modules():
        if isinstance(module, CachedBlock):
            module.register_forward_hook(lambda block, args, out: calls.append((block, args, out)))
    backbone(torch.randn(2, 3, 64, 96))
    assert len(calls) == sum(backbone.num_layers if family == 'pvt' else TWO_STAGES['swin']['depths'])
    for block, args, expected in calls:
        block._forward_hooks.clear()
        out = torch.compile(block, fullgraph=True, backend='eager')(*args)
        assert_same(out, expected, 1e-5)


@pytest.mark.slow
@family
def test_evaluation_is_one_graph(family):
    backbone = build(family, **TWO_STAGES[family])
    x = torch.randn(1, 3, 64, 96)
    backbone(x)
    backbone.eval()
    assert_same(torch.compile(backbone, fullgraph=True, backend='eager')(x), backbone(x), 1e-4)


@pytest.mark.slow
@family
def test_compiled_backbone_trains_and_commits(family):
    plain, source = build(family, **TWO_STAGES[family]), build(family, **TWO_STAGES[family])
    # A backend that derives its own backward graph, as inductor does.
    compiled = torch.compile(source, backend='aot_eager')
    for x in torch.randn(2, 2, 3, 64, 96):
        outs = [model(x) for model in (compiled, plain)]
        assert_same(*outs, 1e-4)
        assert_same(caches(source), caches(plain), 1e-5)
        for out in outs:
            loss(out).backward()
    for (name, left), right in zip(source.named_parameters(), plain.parameters(), strict=True):
        scale = right.grad.abs().max().item()
        torch.testing.assert_close(
            left.grad, right.grad, rtol=1e-4, atol=1e-4 * scale, msg=lambda m, n=name: f'{n}: {m}'
        )
