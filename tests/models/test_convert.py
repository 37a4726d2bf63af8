"""Checkpoints of the original PVT, of MMDetection and of the published GRC module."""

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.backbones import PyramidVisionTransformer, PyramidVisionTransformerV2
from mmengine.registry import MODELS

from mmgrc.models.convert import backbone_state, convert_checkpoint, convert_pvt, load_converted
from tests.helpers.published import original_pvt, published_grc

SMALL = {'embed_dims': 16, 'num_layers': [1, 2, 1, 1]}


def build(**options):
    torch.manual_seed(0)
    model = MODELS.build({'type': 'GRCPyramidVisionTransformer', **SMALL, **options})
    for tensor in model.state_dict().values():
        torch.nn.init.normal_(tensor, std=0.1)
    return model.eval()


def test_original_pvt():
    source = build(grc={'stages': ()})
    state, report = convert_checkpoint(original_pvt(source.state_dict()))
    assert not report.missing
    assert not report.unused
    assert all('.grc.' in key for key in report.new)
    assert state.keys() == source.state_dict().keys()
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in state.items())


def test_published_module_with_its_caches_gives_the_same_outputs():
    source = build()
    state, report = convert_checkpoint({'model': published_grc(source.state_dict())})
    assert not report.missing
    assert not report.new
    assert not report.unused
    other = MODELS.build({'type': 'GRCPyramidVisionTransformer', **SMALL}).eval()
    other.load_state_dict(state, strict=True)
    x = torch.randn(1, 3, 224, 224)
    for left, right in zip(source(x), other(x), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'module.backbone.'])
def test_mmdetection(prefix):
    source = PyramidVisionTransformer(**SMALL)
    checkpoint = {'state_dict': {f'{prefix}{key}': value for key, value in source.state_dict().items()}}
    if prefix:
        checkpoint['state_dict'][prefix.replace('backbone.', 'neck.convs.0.weight')] = torch.zeros(1)
    state, report = convert_checkpoint(checkpoint)
    assert state.keys() == source.state_dict().keys()
    assert not report.missing
    assert not report.unused


def test_pvt_v2():
    source = PyramidVisionTransformerV2(embed_dims=16, num_layers=[1, 1, 1, 1])
    state, report = convert_checkpoint({'state_dict': source.state_dict()})
    assert state.keys() == source.state_dict().keys()
    assert not report.missing


def test_own_checkpoints_pass_unchanged():
    state = build().state_dict()
    converted = convert_pvt(state)
    assert converted.keys() == state.keys()


def test_counts_what_is_missing_and_unused(monkeypatch):
    said = []
    monkeypatch.setattr('mmgrc.models.convert.print_log', lambda message, **_: said.append(message))
    model = build()
    state = original_pvt(build(grc={'stages': ()}).state_dict())
    del state['block1.0.norm1.weight']
    state['extra.weight'] = torch.zeros(2)
    report = load_converted(model, state, convert_pvt)
    assert report.missing == ['layers.0.1.1.norm1.weight']
    assert report.unused == ['extra.weight']
    assert len(report.loaded) + len(report.missing) + len(report.new) == len(model.state_dict())
    assert '1 missing' in said[0]
    assert '1 of the checkpoint unused' in said[0]


def test_checkpoint_of_something_else():
    with pytest.raises(ValueError, match=r'not a checkpoint of a PVT. It has conv1.weight'):
        convert_checkpoint({'state_dict': {'conv1.weight': torch.zeros(3)}})


def test_checkpoint_of_another_size():
    state = build(grc={'stages': ()}, embed_dims=8).state_dict()
    with pytest.raises(ValueError, match='another size'):
        load_converted(build(), state, convert_pvt)


def classifier(backbone):
    """The checkpoint of a classifier with this backbone, and caches that are not empty."""
    state = {f'backbone.{key}': value for key, value in backbone.state_dict().items()}
    return {'state_dict': {**state, 'head.fc.weight': torch.zeros(3, 4)}}


def tables(model, ending):
    return {key: value for key, value in model.state_dict().items() if key.endswith(ending)}


def test_classifier_of_another_image_size(tmp_path, monkeypatch):
    """From 64 x 64 pixels to 128 x 192: position tables are interpolated, and caches start empty or are resized."""
    said = []
    monkeypatch.setattr('mmgrc.models.convert.print_log', lambda message, **_: said.append(message))
    source = build(pretrain_img_size=64)
    torch.save(classifier(source), tmp_path / 'classifier.pth')
    options = {
        'pretrain_img_size': (128, 192),
        'init_cfg': {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'classifier.pth')},
    }
    for keep in (False, True):
        detector = build(**options, grc={'cache_sizes': ((8, 8), (4, 4), (2, 2), (1, 1)), 'keep_caches': keep})
        for cache in tables(detector, '.grc.cache').values():
            cache.zero_()
        detector.init_weights()
        own = detector.state_dict()
        for key, value in source.state_dict().items():
            stage = int(key.split('.')[1])
            side = 16 >> stage
            grid = value.unflatten(1, (side, side)).permute(0, 3, 1, 2) if value.ndim == 3 else None
            if key.endswith('pos_embed'):
                expected = F.interpolate(grid, size=(32 >> stage, 48 >> stage), mode='bilinear')
            elif not key.endswith('.grc.cache'):
                assert torch.equal(own[key], value), key
                continue
            elif keep:
                expected = F.avg_pool2d(grid, 2)
            else:
                assert not own[key].any(), key
                continue
            torch.testing.assert_close(own[key], expected.flatten(2).transpose(1, 2))
    caches = len(tables(source, '.grc.cache'))
    assert '4 resized (4 position tables, 0 caches)' in said[0]
    assert f'Its {caches} caches are not taken and start empty' in said[0]
    assert f'{4 + caches} resized (4 position tables, {caches} caches)' in said[1]
    assert 'not taken' not in said[1]


def test_swin_of_another_window(tmp_path):
    options = {'type': 'GRCSwinTransformer', 'embed_dims': 12, 'depths': (2, 1, 1, 1), 'num_heads': (1, 2, 4, 8)}
    source = MODELS.build({**options, 'window_size': 4, 'out_indices': (3,), 'grc': {'cache_sizes': (6, 6, 4, 2)}})
    for tensor in (*tables(source, 'bias_table').values(), *tables(source, '.grc.cache').values()):
        torch.nn.init.normal_(tensor)
    detector = MODELS.build({**options, 'grc': {'cache_sizes': (3, 3, 2, 1)}})
    state, report = convert_checkpoint(classifier(source), detector)
    assert not [key for key in state if key.startswith('head')]
    assert len(report.resized) == 2 * 5
    assert set(report.missing) == {f'norm{i}.{kind}' for i in range(3) for kind in ('weight', 'bias')}
    for key, value in tables(source, 'bias_table').items():
        grid = value.t().unflatten(1, (7, 7))[None]
        expected = F.interpolate(grid, size=(13, 13), mode='bicubic')[0].flatten(1).t()
        torch.testing.assert_close(state[key], expected)
    for key, value in tables(source, '.grc.cache').items():
        grid = value.unflatten(
            1, (6, 6) if 'stages.0' in key or 'stages.1' in key else ((4, 4) if 'stages.2' in key else (2, 2))
        )
        expected = F.avg_pool2d(grid.permute(0, 3, 1, 2), 2).flatten(2).transpose(1, 2)
        torch.testing.assert_close(state[key], expected)
    detector.load_state_dict({**detector.state_dict(), **state})
    assert all(value.isfinite().all() for value in detector(torch.rand(1, 3, 64, 64)))


def test_grid_that_cannot_be_told():
    state = build(pretrain_img_size=(64, 160)).state_dict()
    with pytest.raises(ValueError, match=r'pos_embed: the checkpoint has 640 cells, which are no square'):
        load_converted(build(pretrain_img_size=64), state, convert_pvt)


def test_only_tensors_of_the_backbone_are_taken():
    state = {'backbone.a': torch.zeros(1), 'neck.b': torch.zeros(1), 'backbone.c': 'no tensor'}
    assert list(backbone_state({'state_dict': state})) == ['a']
