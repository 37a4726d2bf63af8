"""For each layer with a fast form: plain = fast = MMDetection's layer with a transcribed memory, gradients too."""

import copy

import pytest
import torch
from mmcv.cnn.bricks.drop import DropPath
from mmdet.models import layers as mmdet_layers
from mmdet.models.backbones import pvt, swin
from torch import nn

from mmgrc.models.layers.patches import PatchEmbed, PatchMerging
from mmgrc.models.layers.pvt import MixFFN, SpatialReductionAttention
from mmgrc.models.layers.swin import FFN, ShiftWindowMSA
from mmgrc.models.ops import MODES, use_ops
from mmgrc.models.ops.folding import FoldedGRC
from mmgrc.models.ops.linear import replace_linear_layers
from mmgrc.models.ops.residual import add_residual
from mmgrc.models.resampling import make_resampling
from tests.helpers import reference
from tests.helpers.backbones import assert_same, build, caches, loss

# 1,200 tokens: enough for chunks and for each kernel.
HW, DIMS, HEADS = (40, 30), 16, 2
EXTENTS = [(40, 30), (31, 22.5)]


class Memory:
    """An attention layer with a memory, and MMDetection's layer with the transcribed memory."""

    def __init__(self, ours, stock, variant, **options):
        grc = FoldedGRC(DIMS, HEADS, (4, 6), variant=variant, **options)
        grc.cache.normal_()
        self.stock, self.ours = stock, ours(copy.deepcopy(stock), grc)

    def run(self, layer, x):
        resampling = make_resampling(torch.tensor(EXTENTS, dtype=x.dtype), HW, HW, (4, 6))
        out, new_cache = layer(x, HW, torch.zeros_like(x), layer.grc.cache.clone(), resampling)
        return (out,) if new_cache is None else (out, new_cache)

    def written_out(self, x):
        attn_out = self.stock(x, HW) if isinstance(self.stock, swin.ShiftWindowMSA) else self.stock(x, HW, None) - x
        out, stored = reference.grc(self.ours.grc, x, attn_out, HW, EXTENTS, self.ours.training)
        return (out,) if stored is None else (out, stored)


class Stock:
    """A layer without a memory, and MMDetection's."""

    def __init__(self, ours, stock, run, written_out):
        self.stock, self.ours = stock, ours(copy.deepcopy(stock))
        self.run, self.written_out = (lambda layer, x: (run(layer, x),)), (lambda x: (written_out(stock, x),))


def attention_pvt(sr_ratio):
    return pvt.SpatialReductionAttention(DIMS, HEADS, sr_ratio=sr_ratio)


def attention_swin(shift):
    return swin.ShiftWindowMSA(DIMS, HEADS, window_size=7, shift_size=shift)


def as_map(x):
    return x.unflatten(1, HW).permute(0, 3, 1, 2)


CASES = {
    'pvt attention': lambda: Stock(
        SpatialReductionAttention,
        attention_pvt(2),
        lambda layer, x: layer(x, HW, torch.zeros_like(x))[0],
        lambda layer, x: layer(x, HW, None) - x,
    ),
    'swin attention': lambda: Stock(
        ShiftWindowMSA,
        attention_swin(3),
        lambda layer, x: layer(x, HW, torch.zeros_like(x))[0],
        lambda layer, x: layer(x, HW),
    ),
    'pvt feed-forward': lambda: Stock(
        MixFFN,
        pvt.MixFFN(DIMS, 64),
        lambda layer, x: layer(x, nn.Identity(), HW),
        lambda layer, x: layer(x, HW),
    ),
    'pvtv2 feed-forward': lambda: Stock(
        MixFFN,
        pvt.MixFFN(DIMS, 64, use_conv=True),
        lambda layer, x: layer(x, nn.Identity(), HW),
        lambda layer, x: layer(x, HW),
    ),
    'swin feed-forward': lambda: Stock(
        FFN, swin.FFN(DIMS, 64), lambda layer, x: layer(x, nn.Identity()), lambda layer, x: layer(x)
    ),
    'patch embedding': lambda: Stock(
        PatchEmbed,
        mmdet_layers.PatchEmbed(DIMS, 24, kernel_size=4, stride=4, norm_cfg={'type': 'LN'}),
        lambda layer, x: layer(as_map(x))[0],
        lambda layer, x: layer(as_map(x))[0],
    ),
    'patch merging': lambda: Stock(
        PatchMerging,
        mmdet_layers.PatchMerging(DIMS, 24),
        lambda layer, x: layer(x, HW)[0],
        lambda layer, x: layer(x, HW)[0],
    ),
    **{
        f'{family} memory, {variant}{", ratio 1, no convolution" if options else ""}': (
            lambda ours=ours, stock=stock, variant=variant, options=options: Memory(ours, stock(), variant, **options)
        )
        for family, ours, stock in (
            ('pvt', SpatialReductionAttention, lambda: attention_pvt(2)),
            ('swin', ShiftWindowMSA, lambda: attention_swin(3)),
        )
        for variant in ('code', 'paper')
        for options in ({}, {'cache_ratio': 1.0, 'pos_conv': False, 'sr_ratio': 2})
    },
}


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('name', CASES)
def test_plain_equals_fast_equals_the_independent_form(name, training, dtype):
    torch.manual_seed(0)
    case = CASES[name]()
    for parameter in case.ours.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, std=0.5)
    case.ours.train(training)
    x = torch.randn(2, HW[0] * HW[1], DIMS)
    x, results = x.to(dtype), {}
    for mode in MODES:
        layer = copy.deepcopy(case.ours).to(dtype)
        if mode != 'plain':
            replace_linear_layers(layer)
        with use_ops(mode):
            results[mode] = outputs_and_gradients(lambda x, layer=layer: case.run(layer, x), x, layer.parameters())
    for module in (case.ours, case.stock.train(training)):
        module.double()
    stock = dict(case.stock.named_parameters())
    parameters = [stock.get(name, value) for name, value in case.ours.named_parameters()]
    for stock_value, value in zip(parameters, case.ours.parameters(), strict=True):
        stock_value.data.copy_(value.data)
    expected = outputs_and_gradients(case.written_out, x.double(), parameters)
    for mode, result in results.items():
        for ours, exact in zip(result, expected, strict=True):
            scale = max(1.0, float(exact.abs().max()))
            tolerance = (1e-4 if dtype == torch.float32 else 1e-10) * scale
            torch.testing.assert_close(ours, exact, rtol=0, atol=tolerance, msg=lambda m, mode=mode: f'{mode}: {m}')


def outputs_and_gradients(function, x, parameters):
    """The outputs of a function of tokens, and the gradients of its first output, all in float64."""
    x.requires_grad_()
    outs = function(x)
    weights = torch.randn(outs[0].shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(x.dtype)
    # The paper's variant does not use its gates in evaluation, so they have no gradient there.
    grads = torch.autograd.grad((outs[0] * weights).sum(), [x, *parameters], allow_unused=True, materialize_grads=True)
    return [tensor.detach().double() for tensor in (*outs, *grads)]


def test_dropped_paths_are_the_same_in_each_mode():
    """A residual sum with a path dropped for some images, against the explicit sum."""
    identity, out, drop = torch.randn(8, 5, 4), torch.randn(8, 5, 4), DropPath(0.5)
    results = []
    for mode in MODES:
        torch.manual_seed(1)
        with use_ops(mode):
            results.append(add_residual(identity, out, drop))
    torch.manual_seed(1)
    kept = (0.5 + torch.rand(8, 1, 1)).floor() / 0.5
    for result in results:
        torch.testing.assert_close(result, identity + kept * out)


def test_a_wrong_mode_is_named():
    with pytest.raises(ValueError, match="'quick': allowed are plain, fast"), use_ops('quick'):
        pass


def by_subclass(layer):
    stock = type(layer)
    layer.__class__ = type('Adapted', (stock,), {'forward': lambda self, x: 1.5 * stock.forward(self, x)})


def by_hook(layer):
    layer.register_forward_hook(lambda layer, args, out: 1.5 * out)


def by_method(layer):
    forward = layer.forward
    layer.forward = lambda x: 1.5 * forward(x)


@pytest.mark.parametrize('family', ['pvt', 'pvtv2', 'swin'])
@pytest.mark.parametrize('adapt', [by_subclass, by_hook, by_method])
def test_adapted_layers_are_called(family, adapt):
    """Adapters, such as LoRA's, change what a layer computes, and not its weights."""
    plain, fast = build(family), build(family)
    untouched = fast(torch.randn(1, 3, 64, 96))
    fast.reset_caches()
    for backbone in (plain, fast):
        for name, layer in backbone.named_modules():
            # The attention of PyTorch reads the weights of its own input projection.
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.LayerNorm) and not name.endswith('in_proj'):
                adapt(layer)
    results = []
    for backbone, mode in ((plain, 'plain'), (fast, 'fast')):
        torch.manual_seed(0)
        with use_ops(mode):
            outs = backbone(torch.randn(1, 3, 64, 96))
            loss(outs).backward()
        gradients = {name: parameter.grad for name, parameter in backbone.named_parameters()}
        results.append((outs, gradients, caches(backbone)))
    (outs, gradients, stored), (fast_outs, fast_gradients, fast_stored) = results
    assert_same(fast_outs, outs, 1e-4)
    assert_same(fast_stored, stored, 1e-4)
    for name, gradient in gradients.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(fast_gradients[name], gradient, rtol=1e-3, atol=1e-4 * max(scale, 1e-3))
    assert not torch.allclose(untouched[0], fast_outs[0], atol=1e-2)
