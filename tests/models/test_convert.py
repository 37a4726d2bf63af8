"""Checkpoints of the original PVT, of MMDetection and of the published GRC module."""

import pytest
import torch
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


def test_only_tensors_of_the_backbone_are_taken():
    state = {'backbone.a': torch.zeros(1), 'neck.b': torch.zeros(1), 'backbone.c': 'no tensor'}
    assert list(backbone_state({'state_dict': state})) == ['a']
