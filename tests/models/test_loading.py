"""Messages about memories that are missing, renamed or of another size, and changing sizes on purpose."""

import os
import subprocess

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import load_checkpoint
from torch import nn
from torch.nn.functional import avg_pool2d, interpolate

from mmgrc.models.convert import resize_caches
from tests.conftest import REPOSITORY, SHAPES_CONFIG
from tests.helpers.backbones import FAMILIES, SMALL, assert_same, build, caches

family = pytest.mark.parametrize('family', FAMILIES)


class Detector(nn.Module):
    """A backbone under the name that it has in a detector."""

    def __init__(self, family, **options):
        super().__init__()
        self.backbone = build(family, **options)
        self.neck = nn.Linear(1, 1)


@pytest.fixture
def said(monkeypatch):
    messages = []
    monkeypatch.setattr('mmgrc.models.backbones.cached.print_log', lambda message, **_: messages.append(message))
    return messages


@family
def test_cache_of_another_size_is_an_error(family, tmp_path):
    torch.save({'state_dict': Detector(family, grc={'cache_sizes': (9, 8, 4, 2)}).state_dict()}, tmp_path / 'old.pth')
    other = Detector(family, grc={'cache_sizes': (8, 8, 4, 2)})
    name = next(iter(other.backbone.grc_layers()))
    with pytest.raises(ValueError, match='has the shape') as error:
        load_checkpoint(other, str(tmp_path / 'old.pth'))  # lenient, as mmengine loads
    dims = other.backbone.grc_layers()[name].dims
    for words in (f'backbone.{name}.cache', f'(1, 81, {dims})', f'(1, 64, {dims})', '8 x 8', '--resize-caches'):
        assert words in str(error.value)


@family
def test_weights_to_start_from_may_have_caches_of_another_size(family, tmp_path):
    source = build(family, grc={'cache_sizes': (9, 8, 4, 2)})
    torch.save({'state_dict': source.state_dict()}, tmp_path / 'old.pth')
    init_cfg = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'old.pth')}
    backbone = build(family, grc={'cache_sizes': (8, 8, 4, 2)}, init_cfg=init_cfg)
    assert_same(list(backbone.parameters()), list(source.parameters()))
    assert not any(cache.any() for cache in caches(backbone).values())


@family
def test_missing_cache_is_counted(family, tmp_path, said):
    source = Detector(family)
    state = source.state_dict()
    lost = next(key for key in state if key.endswith('.grc.cache'))
    del state[lost]
    torch.save({'state_dict': state}, tmp_path / 'lost.pth')
    load_checkpoint(Detector(family), str(tmp_path / 'lost.pth'))
    total = sum('.grc.' in key for key in source.state_dict())
    kind = SMALL[family]['type']
    assert len(said) == 1
    assert said[0].startswith(
        f'1 of the {total} GRC tensors of {kind} are not in the checkpoint ({lost}), 1 caches among them'
    )
    assert 'use the checkpoint with the config that it was trained with' in said[0]


@family
def test_missing_convolution_is_counted(family, tmp_path, said):
    state = {k: v for k, v in Detector(family, grc={'memory': False}).state_dict().items() if '.grc.' not in k}
    torch.save({'state_dict': state}, tmp_path / 'stock.pth')
    load_checkpoint(detector := Detector(family, grc={'memory': False}), str(tmp_path / 'stock.pth'))
    total = 2 * len(detector.backbone.added_layers())
    assert len(said) == 1
    assert said[0].startswith(
        f'{total} of the {total} GRC tensors of {SMALL[family]["type"]} are not in the checkpoint'
    )


@family
def test_renamed_layer_is_counted_on_both_sides(family, tmp_path, said):
    source = Detector(family)
    name = next(iter(source.backbone.grc_layers()))
    renamed = {key.replace(name, name.replace('attn', 'attention')): v for key, v in source.state_dict().items()}
    torch.save({'state_dict': renamed}, tmp_path / 'renamed.pth')
    load_checkpoint(Detector(family), str(tmp_path / 'renamed.pth'))
    count = sum(name in key for key in source.state_dict())
    assert said[0].startswith(f'{count} of the ')
    assert f'{count} GRC tensors of the checkpoint are not in the model' in said[0]


@family
def test_whole_checkpoints_load_without_a_word(family, tmp_path, said):
    source = Detector(family)
    source.backbone(torch.randn(1, 3, 64, 64))
    torch.save({'state_dict': source.state_dict()}, tmp_path / 'whole.pth')
    other = Detector(family)
    load_checkpoint(other, str(tmp_path / 'whole.pth'))
    assert not said
    assert_same(caches(other.backbone), caches(source.backbone))


NARROW = {
    'model.backbone.embed_dims': 16,
    'model.backbone.num_layers': [1, 1, 1, 1],
    'model.neck.in_channels': [16, 32, 80, 128],
}

INFER = """
import sys
from mmdet.apis import DetInferencer, init_detector
from mmengine.config import Config
import mmgrc
config = Config.fromfile(sys.argv[1])
print('== init_detector', flush=True)
init_detector(config, sys.argv[2], device='cpu')
print('== DetInferencer', flush=True)
DetInferencer(config, sys.argv[3], device='cpu')
"""


def test_stock_and_incomplete_checkpoints_at_inference_are_loud(python, tmp_path, shapes):
    config = Config.fromfile(REPOSITORY / SHAPES_CONFIG)
    config.merge_from_dict(NARROW)
    config.dump(tmp_path / 'grc.py')
    state = MODELS.build({**config.model, '_scope_': 'mmdet'}).state_dict()
    files = {
        'stock.pth': {key: value for key, value in state.items() if '.grc.' not in key},
        'lost.pth': {key: value for key, value in state.items() if key != 'backbone.layers.1.1.1.attn.grc.cache'},
    }
    for name, kept in files.items():
        torch.save({'meta': {'dataset_meta': dict(config.metainfo)}, 'state_dict': kept}, tmp_path / name)
    result = subprocess.run(
        [python, '-c', INFER, *(str(tmp_path / name) for name in ('grc.py', *files))],
        cwd=REPOSITORY,
        env={**os.environ, 'SHAPES_ROOT': str(shapes), 'CUDA_VISIBLE_DEVICES': ''},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    total = len(state) - len(files['stock.pth'])
    said = result.stdout.split('== DetInferencer')
    for part, counts in zip(said, ((total, 4), (1, 1)), strict=True):
        assert f'WARNING - {counts[0]} of the {total} GRC tensors of GRCPyramidVisionTransformer are not in' in part
        assert f'{counts[1]} caches among them' in part


# Another size on purpose.


@pytest.mark.parametrize(
    ('old', 'new', 'reference'),
    [
        ((8, 8), (4, 4), lambda grid: avg_pool2d(grid, 2)),
        ((8, 12), (4, 4), lambda grid: avg_pool2d(grid, (2, 3))),
        ((4, 6), (8, 12), lambda grid: interpolate(grid, scale_factor=2)),
    ],
)
@family
def test_caches_are_resized_as_maps(family, old, new, reference):
    # A reduction would need larger caches.
    options = {'sr_ratios': [1, 1, 1, 1]} if family == 'pvt' else {}
    models = [Detector(family, grc={'cache_sizes': (size, 8, 4, 4)}, **options) for size in (old, new)]
    models[0].backbone(torch.randn(2, 3, 64, 96))
    state, resized = resize_caches({'state_dict': models[0].state_dict()}, *models)
    first = 'layers.0.' if family == 'pvt' else 'stages.0.'
    assert resized == [f'backbone.{name}.cache' for name in models[1].backbone.grc_layers() if name.startswith(first)]
    models[1].load_state_dict(state, strict=True)
    for key, value in models[0].state_dict().items():
        if key in resized:
            value = reference(value.unflatten(1, old).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
            torch.testing.assert_close(state[key], value)
        else:
            assert torch.equal(state[key], value), key


def test_only_sizes_may_differ():
    source = Detector('pvt')
    checkpoint = {'state_dict': source.state_dict()}
    with pytest.raises(ValueError, match=r'\.cache: .*the new config.*differ only in grc.cache_sizes'):
        resize_caches(checkpoint, source, Detector('pvt', grc={'cache_ratio': 1.0, 'cache_sizes': (8, 8, 4, 2)}))
    with pytest.raises(ValueError, match=r'the old config'):
        resize_caches(checkpoint, Detector('pvt', grc={'cache_sizes': (9, 8, 4, 2)}), source)


@family
@pytest.mark.parametrize(
    'init_cfg', [{'type': 'TruncNormal', 'layer': 'Linear'}, {}, {'type': 'Pretrained'}, [{'type': 'Pretrained'}]]
)
def test_init_cfg_without_a_checkpoint_is_an_error(family, init_cfg):
    with pytest.raises((ValueError, TypeError, AssertionError), match=r'init_cfg|Pretrained'):
        build(family, init_cfg=init_cfg)


@family
def test_two_backbones_are_counted_alone(family, said):
    both = nn.ModuleDict({'student': build(family), 'teacher': build(family)})
    stock = {key: value for key, value in both.state_dict().items() if '.grc.' not in key}
    both.load_state_dict(stock, strict=False)
    total = sum('.grc.' in key for key in both['student'].state_dict())
    assert len(said) == 2
    for name, message in zip(both, said, strict=True):
        assert message.startswith(f'{total} of the {total} GRC tensors of {SMALL[family]["type"]}')
        assert f'({name}.' in message


@family
@pytest.mark.parametrize('assign', [False, True])
def test_half_precision_weights_leave_the_cache_exact(family, assign):
    backbone = build(family)
    state = {key: value.half() for key, value in backbone.state_dict().items()}
    backbone.load_state_dict(state, assign=assign)
    assert {cache.dtype for cache in caches(backbone).values()} == {torch.float32}
    assert next(backbone.parameters()).dtype == (torch.float16 if assign else torch.float32)
    assert all(value.dtype == torch.float16 for value in state.values())
