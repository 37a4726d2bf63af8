"""Attention and feed-forward layers: hooks on them, layout of gradients, and dropout with a memory."""

import pytest
import torch
from mmengine.registry import MODELS
from torch.nn.functional import conv2d

from mmgrc.models.ops import use_ops
from mmgrc.models.resampling import make_resampling
from tests.helpers.backbones import SMALL, assert_same, build, loss

family = pytest.mark.parametrize('family', ['pvt', 'pvtv2', 'swin'])
# 40 x 32 tokens in the first stage: enough for chunks.
SIZE = (160, 128)


@family
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('options', [{}, {'grc': {'stages': ()}}])
def test_forward_hooks_keep_what_they_saw(family, training, options):
    """Features can be recorded with hooks: the output of a module is never changed later."""
    backbone = build(family, **options).train(training)
    kept = []

    def keep(module, args, output):
        for tensor in output if isinstance(output, tuple) else (output,):
            if isinstance(tensor, torch.Tensor):
                kept.append((type(module).__name__, tensor, tensor.detach().clone()))

    for module in backbone.modules():
        module.register_forward_hook(keep)
    with torch.set_grad_enabled(training):
        backbone(torch.randn(2, 3, *SIZE))
    assert len(kept) > 40
    for name, tensor, value in kept:
        assert torch.equal(tensor, value), name


@family
@pytest.mark.parametrize('with_cp', [True, False])
def test_backward_hooks_may_be_everywhere(family, with_cp):
    backbone, plain = build(family, with_cp=with_cp), build(family, with_cp=with_cp)
    seen = set()
    for name, module in backbone.named_modules():
        module.register_full_backward_hook(lambda *_, name=name: seen.add(name))
    x = torch.randn(2, 3, *SIZE)
    for model in (backbone, plain):
        loss(model(x)).backward()
    assert any(name.endswith('.grc') for name in seen)
    assert_same(*([parameter.grad for parameter in model.parameters()] for model in (backbone, plain)))


@family
def test_gradients_of_tokens_lie_as_the_tokens_do(family):
    """The layers after a stage read a map. In its layout each sum of gradients would take twice as long."""
    backbone = build(family)
    strides = set()
    for name, module in backbone.named_modules():
        if name.endswith(('.norm1', '.norm2')):
            module.register_forward_pre_hook(
                lambda module, args: args[0].register_hook(lambda grad: strides.add(grad.is_contiguous())) and None
            )
    with use_ops('fast'):
        loss(backbone(torch.randn(2, 3, *SIZE))).backward()
    assert strides == {True}


@family
def test_dropped_paths_are_those_of_the_stock_backbone(family):
    backbone = build(family, drop_path_rate=0.6, grc={'stages': ()})
    config = {key: value for key, value in SMALL[family].items() if key != 'type'}
    stock = MODELS.build(
        {'type': f'mmdet.{SMALL[family]["type"].removeprefix("GRC")}', 'drop_path_rate': 0.6, **config}
    )
    stock.load_state_dict(backbone.state_dict())
    x, results = torch.randn(4, 3, 64, 64).double(), []
    for model in (backbone, stock):
        model.double().train()
        torch.manual_seed(1)
        outs = model(x)
        loss(outs).backward()
        results.append([*outs, *(parameter.grad for parameter in model.parameters())])
    assert_same(*results, tolerance=1e-9)


@pytest.mark.parametrize('family', ['pvt', 'swin'])
def test_dropout_acts_on_the_projected_tokens(family):
    """If everything is dropped, only the convolution remains, and the summary is zero."""
    backbone = build(family, drop_rate=1.0)
    name, branch = next(iter(backbone.grc_layers().items()))
    layer = backbone.get_submodule(name.removesuffix('.grc'))
    torch.nn.init.normal_(branch.pos_conv.weight)
    branch.cache.normal_()
    hw, x = (6, 10), torch.randn(2, 60, 8)
    resampling = make_resampling(torch.tensor([(6.0, 10.0)] * 2), hw, hw, branch.cache_size)
    out, new_cache = layer(x, hw, torch.zeros_like(x), branch.cache.clone(), resampling)
    grid = x.unflatten(1, hw).permute(0, 3, 1, 2)
    expected = conv2d(grid, branch.pos_conv.weight, branch.pos_conv.bias, padding=1, groups=branch.pos_conv.groups)
    torch.testing.assert_close(out, expected.flatten(2).transpose(1, 2))
    gates = torch.cat([branch.cache, torch.zeros_like(branch.cache)], dim=2)
    update, reset = (torch.sigmoid(gate(gates)) for gate in (branch.update_gate, branch.reset_gate))
    candidate = branch.candidate(torch.cat([reset * branch.cache, torch.zeros_like(branch.cache)], dim=2))
    candidate = branch.candidate_norm(torch.nn.functional.gelu(candidate))
    torch.testing.assert_close(new_cache, update * candidate + (1 - update) * branch.cache)
