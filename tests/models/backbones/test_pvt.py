"""The PVT backbone against stock MMDetection, on every size, and its caches over steps."""

import pytest
import torch
from mmdet.models.backbones import PyramidVisionTransformer
from mmengine.registry import MODELS

from mmgrc.models.grc import GRC

NAME = 'GRCPyramidVisionTransformer'
# Narrow, with two blocks in the first stage: every kind of layer, in little time.
SMALL = {'embed_dims': 16, 'num_layers': [2, 1, 1, 1], 'pretrain_img_size': 64, 'mlp_ratios': [2, 2, 2, 2]}


def build(**options):
    torch.manual_seed(0)
    backbone = MODELS.build({'type': NAME, **SMALL, **options})
    backbone.init_weights()
    return backbone


def stock_and_ours(**options):
    torch.manual_seed(0)
    stock = PyramidVisionTransformer(**{**SMALL, **options})
    stock.init_weights()
    ours = build(grc={'stages': ()}, **options)
    ours.load_state_dict(stock.state_dict(), strict=True)
    return stock, ours


def max_difference(left, right):
    return max((a - b).abs().max().item() for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize('options', [{}, {'qkv_bias': False}, {'out_indices': (1, 3)}, {'use_conv_ffn': True}])
def test_no_stage_equals_stock_in_evaluation(options):
    stock, ours = stock_and_ours(**options)
    assert list(stock.state_dict()) == list(ours.state_dict())
    x = torch.randn(2, 3, 96, 128)
    outs = ours.eval()(x)
    assert isinstance(outs, tuple)
    assert max_difference(stock.eval()(x), outs) < 1e-5


def test_no_stage_equals_stock_in_training():
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        stock, ours = (model.to(dtype) for model in stock_and_ours(drop_path_rate=0.0))
        x = torch.randn(2, 3, 64, 96, dtype=dtype)
        weights = [torch.randn_like(out) for out in stock(x)]
        for model in (stock, ours):
            sum((out * weight).sum() for out, weight in zip(model(x), weights, strict=True)).backward()
        for (name, left), right in zip(stock.named_parameters(), ours.parameters(), strict=True):
            assert (right.grad - left.grad).norm() <= tolerance * left.grad.norm(), name


def test_no_stage_equals_stock_at_full_size():
    torch.manual_seed(0)
    options = {'num_layers': [2, 2, 2, 2]}
    stock = PyramidVisionTransformer(**options)
    stock.init_weights()
    ours = MODELS.build({'type': NAME, 'grc': {'stages': ()}, **options})
    ours.load_state_dict(stock.state_dict(), strict=True)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        for left, right in zip(stock.eval()(x), ours.eval()(x), strict=True):
            torch.testing.assert_close(right, left, rtol=1e-5, atol=1e-5)


def test_stock_checkpoint_lacks_just_the_memory():
    stock = PyramidVisionTransformer(**SMALL)
    result = build().load_state_dict(stock.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert result.missing_keys
    assert all('.attn.grc.' in key for key in result.missing_keys)
    assert len(result.missing_keys) == sum('.grc.' in key for key in build().state_dict())


@pytest.mark.parametrize('size', [(32, 32), (33, 31), (64, 40), (112, 137), (224, 224)])
@pytest.mark.parametrize('variant', ['code', 'paper'])
def test_every_size_trains_and_predicts(size, variant):
    backbone = build(grc={'variant': variant})
    x = torch.randn(2, 3, *size)
    outs = backbone.train()(x)
    sum(out.square().mean() for out in outs).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    strides = (4, 8, 16, 32)
    for out, stride in zip(backbone.eval()(x), strides, strict=True):
        assert out.shape[2:] == tuple(max(n // stride, 1) for n in size)
        assert torch.isfinite(out).all()


def test_stages_are_chosen():
    backbone = build(grc={'stages': (1, 3)})
    assert list(backbone.grc_layers()) == ['layers.1.1.1.attn.grc', 'layers.3.1.1.attn.grc']


def test_default_caches_are_the_stages_grids():
    backbone = MODELS.build({'type': NAME, 'num_layers': [1, 1, 1, 1]})
    assert [branch.cache_size[0] for branch in backbone.grc_layers().values()] == [56, 28, 14, 7]
    assert [branch.dims for branch in backbone.grc_layers().values()] == [32, 64, 160, 256]
    assert all(not branch.cache.any() for branch in backbone.grc_layers().values())


@pytest.mark.parametrize(
    ('num_layers', 'mlp_ratios', 'published'),
    [([2, 2, 2, 2], [8, 8, 4, 4], 15.67), ([3, 4, 6, 3], [8, 8, 4, 4], 29.36), ([3, 4, 18, 3], [8, 8, 4, 4], 53.48)],
)
def test_parameters_are_those_of_the_published_module(num_layers, mlp_ratios, published):
    backbone = MODELS.build({'type': NAME, 'num_layers': num_layers, 'mlp_ratios': mlp_ratios})
    # The classifier also has 1000 classes, the last norm, the class token and its position.
    classifier = 1000 * 512 + 1000 + 2 * 512 + 2 * 512
    total = sum(parameter.numel() for parameter in backbone.parameters()) + classifier
    assert round(total / 1e6, 2) == published


def test_memory_changes_what_is_seen():
    backbone = build().eval()
    x = torch.randn(1, 3, 64, 64)
    empty = backbone(x)
    backbone.train()(torch.randn(2, 3, 64, 64))
    assert max_difference(empty, backbone.eval()(x)) > 1e-4


def test_pretrained_memory_starts_empty(tmp_path):
    trained = build()
    trained.train()(torch.randn(2, 3, 64, 64))
    torch.save({'state_dict': {f'backbone.{k}': v for k, v in trained.state_dict().items()}}, tmp_path / 'w.pth')
    fresh = build(init_cfg={'type': 'Pretrained', 'checkpoint': str(tmp_path / 'w.pth')})
    for (key, value), other in zip(fresh.state_dict().items(), trained.state_dict().values(), strict=True):
        if key.endswith('grc.cache'):
            assert not value.any()
        else:
            assert torch.equal(value, other), key


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save({'conv1.weight': torch.zeros(3)}, tmp_path / 'resnet.pth')
    with pytest.raises(ValueError, match=r'no tensor of the checkpoint fits.*conv1.weight'):
        build(init_cfg={'type': 'Pretrained', 'checkpoint': str(tmp_path / 'resnet.pth')})


def test_bad_option_is_named_at_construction():
    with pytest.raises(ValueError, match=r'grc.cache_ratio=0.3 .*allowed: '):
        MODELS.build({'type': NAME, 'num_layers': [1, 1, 1, 1], 'grc': {'cache_ratio': 0.3}})


def test_initial_lambda_is_the_variants():
    for variant, value in (('code', -1.0), ('paper', 0.0)):
        branches = build(grc={'variant': variant}).grc_layers().values()
        assert all((branch.lam == value).all() for branch in branches)
    assert all((b.lam == -5).all() for b in build(grc={'lambda_init': -5}).grc_layers().values())
    assert all(isinstance(b, GRC) for b in branches)
