"""Half precision: autocast, gradient scaling, models in half, and MMEngine's wrapper."""

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import MODELS

import mmgrc.models.grc as grc_module
from mmgrc.models.grc import MemoryAttention
from mmgrc.models.ops import is_fast
from tests.helpers.backbones import FAMILIES, SMALL, assert_same, build, caches, loss

family = pytest.mark.parametrize('family', FAMILIES)
half = pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])


def watch_gates(monkeypatch):
    """A list that collects the type of each gate's input."""
    seen, sigmoid = [], torch.sigmoid
    monkeypatch.setattr(grc_module.torch, 'sigmoid', lambda t: seen.append(t.dtype) or sigmoid(t))
    return seen


def assert_full_precision(backbone):
    for branch in backbone.grc_layers().values():
        assert branch.cache.dtype == torch.float32
        assert branch.cache.any()
        # Values that half precision cannot represent: the update was not computed in it.
        assert not torch.equal(branch.cache, branch.cache.bfloat16().float())
        assert not torch.equal(branch.cache, branch.cache.half().float())


def stock_layers_are_wrong(family, dtype):
    """oneDNN's convolution of few channels in bfloat16, on CPUs with AMX. Plain operations use it as stock PVT does."""
    if family != 'pvt' or dtype != torch.bfloat16 or is_fast():
        return False
    conv, x = torch.nn.Conv2d(8, 8, 8, stride=8), torch.randn(2, 8, 16, 24)
    return bool((conv.to(dtype)(x.to(dtype)) - conv.float()(x)).abs().max() > 0.1)


@pytest.mark.parametrize('channels', [8, 16, 24, 32])
@half
def test_the_cache_is_reduced_in_its_own_precision(channels, dtype):
    torch.manual_seed(0)
    attention = MemoryAttention(channels, 1, (56, 56), sr_ratio=8)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    memory = torch.randn(2, 56 * 56, channels)
    expected = attention.keys_and_values(memory, 2)
    with torch.autocast('cpu', dtype=dtype):
        autocast = attention.keys_and_values(memory, 2)
    for outs in (autocast, attention.to(dtype).keys_and_values(memory, 2)):
        for out, exact in zip(outs, expected, strict=True):
            assert out.dtype == dtype
            assert (out.float() - exact).norm() < 0.02 * exact.norm()


@family
@half
@pytest.mark.parametrize('options', [{}, {'with_cp': True}, {'grc': {'variant': 'paper'}}])
def test_autocast(family, dtype, options, monkeypatch):
    if stock_layers_are_wrong(family, dtype):
        pytest.skip('on this CPU, oneDNN convolves few channels wrongly in bfloat16')
    backbone, exact = build(family, **options), build(family, **options)
    x = torch.randn(2, 3, 64, 96)
    expected = exact(x)
    seen = watch_gates(monkeypatch)
    with torch.autocast('cpu', dtype=dtype):
        outs = backbone(x)
    loss([out.float() for out in outs]).backward()
    assert seen
    assert set(seen) == {torch.float32}
    assert_full_precision(backbone)
    assert_same(caches(backbone), caches(exact), 0.05)
    assert_same([out.float() for out in outs], expected, 0.2)
    for name, parameter in backbone.named_parameters():
        assert parameter.grad.dtype == torch.float32, name
        assert torch.isfinite(parameter.grad).all(), name
    expected = exact.eval()(x)
    with torch.autocast('cpu', dtype=dtype):
        outs = backbone.eval()(x)
    assert_same([out.float() for out in outs], expected, 0.2)


@family
@half
def test_model_in_half_precision(family, dtype, monkeypatch):
    if stock_layers_are_wrong(family, dtype):
        pytest.skip('on this CPU, oneDNN convolves few channels wrongly in bfloat16')
    backbone, exact = build(family).to(dtype), build(family)
    seen = watch_gates(monkeypatch)
    x = torch.randn(2, 3, 64, 96)
    outs = backbone(x.to(dtype))
    exact(x)
    assert all(out.dtype == dtype for out in outs)
    assert set(seen) == {torch.float32}
    assert_full_precision(backbone)
    assert_same(caches(backbone), caches(exact), 0.05)
    loss([out.float() for out in outs]).backward()


@family
def test_scaler_skips_the_step_and_the_memory_goes_on(family):
    backbone, plain = build(family), build(family)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler('cpu', init_scale=2.0**10)
    weights = [parameter.clone() for parameter in backbone.parameters()]
    for factor in (float('inf'), 1.0):  # the first loss overflows, the forward does not
        x = torch.randn(1, 3, 64, 64)
        optimizer.zero_grad()
        scaler.scale(loss(backbone(x)) * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        if factor > 1:
            plain(x)
            assert_same(list(backbone.parameters()), weights)
            assert_same(caches(backbone), caches(plain))
            kept = caches(backbone)
    assert scaler.get_scale() == 2.0**9
    assert not torch.equal(weights[0], next(backbone.parameters()))
    assert not torch.equal(*(next(iter(state.values())) for state in (kept, caches(backbone))))


class Detector(BaseModel):
    """The minimal detector for a train step."""

    def __init__(self, family):
        super().__init__()
        self.backbone = build(family)

    def forward(self, inputs, mode='tensor'):
        outs = self.backbone(inputs)
        return {'loss': 1e-3 * loss([out.float() for out in outs])} if mode == 'loss' else outs


@family
def test_mmengines_wrapper(family, monkeypatch):
    # It refuses machines without a GPU at the start, although its autocast and its step work there.
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
    model = Detector(family)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    wrapper = AmpOptimWrapper(loss_scale='dynamic', dtype='bfloat16', optimizer=optimizer)
    weights = [parameter.clone() for parameter in model.parameters()]
    types = []
    layer = next(module for name, module in model.named_modules() if name.endswith('mem_attn.q'))
    layer.register_forward_hook(lambda module, args, out: types.append(out.dtype))
    seen = watch_gates(monkeypatch)
    for _ in range(2):
        logs = model.train_step({'inputs': torch.randn(2, 3, 64, 64)}, wrapper)
        assert torch.isfinite(logs['loss'])
    assert set(seen) == {torch.float32}
    assert types == [torch.bfloat16] * 2
    assert_full_precision(model.backbone)
    assert not any(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True) if a.any())


@pytest.mark.parametrize('family', SMALL)
def test_autocast_is_as_exact_as_stock(family):
    """Deep enough that a sum of residuals with too many roundings shows, as 15 % in PVT."""
    depths = {'depths': (2, 2, 6, 2)} if family == 'swin' else {'num_layers': [2, 2, 6, 2]}
    ours = build(family, **depths, grc={'stages': ()}).eval()
    stock = MODELS.build({**SMALL[family], **depths, 'type': f'mmdet.{SMALL[family]["type"].removeprefix("GRC")}'})
    stock.load_state_dict(ours.state_dict())
    stock.eval()
    x = torch.randn(1, 3, 128, 192)
    with torch.no_grad():
        exact = stock(x)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            outs = ours(x), stock(x)
    ratios = [
        (our.float() - true).norm() / (their.float() - true).norm()
        for our, their, true in zip(*outs, exact, strict=True)
    ]
    assert sum(ratios) / len(ratios) < 1.05
