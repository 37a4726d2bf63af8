"""The Swin backbone against stock MMDetection, on every size, and the loading of original weights."""

import pytest
import torch
from mmdet.models.backbones import SwinTransformer
from mmengine.registry import MODELS

from mmgrc.models.resampling import make_resampling
from tests.helpers import reference

NAME = 'GRCSwinTransformer'
SMALL = {'embed_dims': 24, 'depths': (2, 2, 2, 2), 'num_heads': (1, 2, 4, 8), 'mlp_ratio': 2}


def build(**options):
    torch.manual_seed(0)
    backbone = MODELS.build({'type': NAME, **SMALL, **options})
    backbone.init_weights()
    return backbone


def stock_and_ours(**options):
    torch.manual_seed(0)
    stock = SwinTransformer(**{**SMALL, **options})
    stock.init_weights()
    for key, tensor in stock.state_dict().items():
        if 'table' in key or 'absolute' in key:
            torch.nn.init.normal_(tensor)
    ours = MODELS.build({'type': NAME, **SMALL, 'grc': {'stages': ()}, **options})
    ours.load_state_dict(stock.state_dict(), strict=True)
    return stock, ours


SIZES = [(224, 224), (32, 32), (33, 31), (112, 137), pytest.param((800, 1344), marks=pytest.mark.slow)]


@pytest.mark.parametrize('size', SIZES)
def test_no_stage_equals_stock(size):
    stock, ours = stock_and_ours(drop_path_rate=0.0)
    assert list(stock.state_dict()) == list(ours.state_dict())
    x = torch.randn(1 if size[0] > 224 else 2, 3, *size)
    outs, expected = ours(x), stock(x)
    assert isinstance(outs, tuple)
    weights = [torch.randn_like(out) for out in outs]
    for left, right in zip(outs, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)
    for results in (outs, expected):
        sum((out * weight).sum() for out, weight in zip(results, weights, strict=True)).backward()
    for (name, left), right in zip(ours.named_parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(left.grad, right.grad, rtol=1e-3, atol=1e-3, msg=lambda m, n=name: f'{n}: {m}')


@pytest.mark.parametrize(
    'options', [{'window_size': 4}, {'qkv_bias': False}, {'out_indices': (1, 3)}, {'patch_norm': False}]
)
def test_arguments_of_the_stock_class(options):
    stock, ours = stock_and_ours(**options)
    stock.eval()  # returns None
    x = torch.randn(1, 3, 96, 64)
    for left, right in zip(ours.eval()(x), stock(x), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


def test_absolute_position_embedding():
    stock, ours = stock_and_ours(use_abs_pos_embed=True, pretrain_img_size=64)
    stock.eval()
    x = torch.randn(1, 3, 64, 64)
    for left, right in zip(ours.eval()(x), stock(x), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)
    assert ours(torch.randn(1, 3, 96, 160))[0].shape[2:] == (24, 40)  # stock fails here


@pytest.mark.parametrize('index', [0, 1])
@pytest.mark.parametrize('variant', ['code', 'paper'])
def test_memory_around_windows_equals_transcription(variant, index):
    options = {'drop_path_rate': 0.0, 'grc': {'variant': variant, 'cache_sizes': ((3, 4),) * 4}}
    layer = build(**options).stages[0].blocks[index].attn.double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    layer.grc.cache.normal_()
    stock = SwinTransformer(**SMALL, drop_path_rate=0.0).stages[0].blocks[index].attn.double()
    stock.load_state_dict({key: value for key, value in layer.state_dict().items() if not key.startswith('grc.')})

    # Neither side is a multiple of the window; the second image is padded.
    hw, extents = (9, 11), [(9, 11), (6, 8)]
    x = torch.randn(2, 99, 24, dtype=torch.float64)
    resampling = make_resampling(torch.tensor(extents, dtype=torch.float64), hw, hw, (3, 4))
    out, new_cache = layer(x, hw, torch.zeros_like(x), layer.grc.cache.clone(), resampling)
    expected, stored = reference.grc(layer.grc, x, stock(x, hw), hw, extents)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(new_cache, stored)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('variant', ['code', 'paper'])
def test_every_size_trains_and_predicts(size, variant):
    backbone = build(grc={'variant': variant})
    x = torch.randn(1 if size[0] > 224 else 2, 3, *size)
    outs = backbone(x)
    sum(out.square().mean() for out in outs).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert all(torch.isfinite(out).all() for out in backbone(x))
    assert all(branch.cache.any() for branch in backbone.grc_layers().values())


def test_default_caches_are_pooled():
    sizes = {name.split('.')[1]: branch.cache_size for name, branch in build().grc_layers().items()}
    assert sizes == {'0': (14, 14), '1': (14, 14), '2': (14, 14), '3': (7, 7)}


def test_frozen_stages_keep_their_caches():
    backbone = build(frozen_stages=2)
    backbone.train()
    sum(out.sum() for out in backbone(torch.randn(2, 3, 64, 64))).backward()
    for name, branch in backbone.grc_layers().items():
        assert branch.cache.any() == (int(name.split('.')[1]) >= 2), name


def original_swin(state):
    """The original's names, its merging order of patches, and its buffers."""
    out = {}
    for key, value in state.items():
        key = (
            key.replace('stages.', 'layers.')
            .replace('attn.w_msa.', 'attn.')
            .replace('patch_embed.projection', 'patch_embed.proj')
        )
        key = key.replace('ffn.layers.0.0.', 'mlp.fc1.').replace('ffn.layers.1.', 'mlp.fc2.')
        if 'downsample.reduction' in key:
            value = value.unflatten(1, (-1, 4)).transpose(1, 2)[:, [0, 2, 1, 3]].flatten(1)
        elif 'downsample.norm' in key:
            value = value.unflatten(0, (-1, 4)).t()[[0, 2, 1, 3]].flatten()
        elif key.startswith('norm'):
            continue
        out[key] = value
    out['layers.0.blocks.1.attn_mask'] = torch.zeros(64, 49, 49)
    return {'model': {**out, 'norm.weight': torch.ones(8), 'head.weight': torch.ones(2, 8)}}


@pytest.mark.parametrize('window_size', [7, 5])
def test_original_weights_load(tmp_path, window_size):
    stock, _ = stock_and_ours(use_abs_pos_embed=True)
    torch.save(original_swin(stock.state_dict()), tmp_path / 'swin.pth')
    init_cfg = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'swin.pth')}
    ours = build(init_cfg=init_cfg, convert_weights=True, window_size=window_size, use_abs_pos_embed=True)
    for key, value in stock.state_dict().items():
        found = ours.state_dict()[key]
        if value.shape == found.shape and not key.startswith('norm'):
            assert torch.equal(value, found), key
    tables = [v for k, v in ours.state_dict().items() if k.endswith('bias_table')]
    assert all(table.shape[0] == (2 * window_size - 1) ** 2 for table in tables)
    assert all(table.std() > 0.3 for table in tables)


def test_stock_checkpoint_lacks_just_the_memory():
    result = build().load_state_dict(SwinTransformer(**SMALL).state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all('.attn.grc.' in key for key in result.missing_keys)
