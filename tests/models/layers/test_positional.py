"""The positional convolution without a memory equals a memory with a weight of zero in the mix, but has no cache."""

import pytest
import torch
from mmdet.models import backbones as stock_backbones
from mmengine.registry import MODELS

from mmgrc.models.grc import GRC
from mmgrc.models.ops import use_ops
from tests.helpers.backbones import SMALL, assert_same, build, caches, loss

family = pytest.mark.parametrize('family', ['pvt', 'pvtv2', 'swin'])
# σ(-100) is 4e-44.
UNUSED = {'lambda_init': -100}


def images(batch=2):
    torch.manual_seed(1)
    return torch.randn(batch, 3, 96, 128)


def gradients(backbone):
    return {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}


@family
@pytest.mark.parametrize('mode', ['plain', 'fast'])
@pytest.mark.parametrize('training', [False, True])
def test_it_equals_a_memory_that_is_not_used(family, mode, training):
    unused = build(family, grc=UNUSED).train(training)
    alone = build(family, grc={'memory': False}).train(training)
    state = unused.state_dict()
    # The same keys, without those of the memory.
    assert alone.state_dict().keys() == {k for k in state if '.grc.' not in k or '.grc.pos_conv.' in k}
    alone.load_state_dict({key: state[key] for key in alone.state_dict()})
    with use_ops(mode):
        outs = [backbone(images()) for backbone in (unused, alone)]
        for out in outs:
            loss(out).backward()
    assert_same(*outs, tolerance=1e-5)
    theirs, ours = gradients(unused), gradients(alone)
    for key, value in ours.items():
        assert value.any(), key
        assert (value - theirs[key]).abs().max() <= 1e-4 * value.abs().max(), key


@family
def test_it_has_no_cache_and_computes_no_summary(family, monkeypatch):
    backbone = build(family, grc={'memory': False})
    assert not caches(backbone)
    assert not any(isinstance(module, GRC) for module in backbone.modules())
    monkeypatch.setattr('mmgrc.models.cache.make_resampling', lambda *args: pytest.fail('a summary is prepared'))
    assert not backbone.begin_step(images()).caches
    backbone(images())
    backbone.reset_caches()


@family
def test_it_starts_as_in_a_layer_with_a_memory(family):
    with_memory, alone = build(family).added_layers(), build(family, grc={'memory': False}).added_layers()
    assert with_memory.keys() == alone.keys()
    for name, layer in alone.items():
        weight, reference = layer.pos_conv.weight, with_memory[name].pos_conv.weight
        assert not layer.pos_conv.bias.any()
        assert weight.shape == reference.shape
        # Both are uniform within ± 1 / sqrt(fan_in).
        bound = weight[0].numel() ** -0.5
        for largest in (weight.abs().max(), reference.abs().max()):
            assert 0.8 * bound < largest <= bound


@family
def test_with_a_silent_start_stock_weights_keep_their_function(family, tmp_path):
    stock_config = {**SMALL[family], 'type': SMALL[family]['type'].removeprefix('GRC'), 'drop_path_rate': 0.0}
    stock = getattr(stock_backbones, stock_config.pop('type'))(**stock_config)
    torch.save(stock.state_dict(), tmp_path / 'stock.pth')
    outs = {}
    for start in ('silent', 'random'):
        init_cfg = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'stock.pth')}
        backbone = build(family, grc={'memory': False, 'start': start}, init_cfg=init_cfg)
        outs[start] = backbone(images())
        assert_same(dict(stock.state_dict()), {k: v for k, v in backbone.state_dict().items() if '.grc.' not in k})
    assert_same(outs['silent'], stock(images()), tolerance=1e-4)
    assert not torch.allclose(outs['random'][0], outs['silent'][0], atol=1e-2)
    loss(outs['silent']).backward()
    assert outs['silent'][0].requires_grad


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'memory': False, 'pos_conv': False}, r'grc.memory=False with grc.pos_conv=False: .*grc.stages=\(\)'),
        ({'memory': 0}, 'grc.memory=0: give True or False'),
        ({'memory': False, 'cache_ratio': 0.375}, 'grc.cache_ratio=0.375 does not split'),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build({**SMALL['swin'], 'grc': options})
