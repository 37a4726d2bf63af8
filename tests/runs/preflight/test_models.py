"""Invalid models, weights and checkpoints give one clear error before the run."""

import argparse
import re
from pathlib import Path

import pytest
import torch
from mmdet.models import PyramidVisionTransformer

from mmgrc.runs.config import build_model
from mmgrc.runs.error import InputError
from mmgrc.runs.preflight import (
    check_checkpoint,
    check_optimizer,
    check_parts,
    check_resume,
    check_weights,
)
from mmgrc.runs.tool import check_training


@pytest.fixture
def checkpoint(config, tmp_path):
    path = tmp_path / 'epoch_1.pth'
    content = {
        'state_dict': build_model(config).state_dict(),
        'meta': {'dataset_meta': {'classes': ('circle', 'square', 'triangle')}},
        'optimizer': {},
        'message_hub': {},
    }
    torch.save(content, path)
    return path


def test_checkpoint_of_other_classes(config, checkpoint, said):
    check_checkpoint(config, str(checkpoint))
    assert not said

    config.train_dataloader.dataset.metainfo.classes = ('circle', 'square', 'star')
    check_checkpoint(config, str(checkpoint))
    words = (
        'It was trained on 3 classes (circle, square, triangle); the data here has 3 classes (circle, square, star).'
    )
    assert said == [f'{checkpoint}: {words}']

    config.train_dataloader.dataset.metainfo.classes = ('circle', 'square')
    for head in (config.model.roi_head.bbox_head, config.model.roi_head.mask_head):
        head.num_classes = 2
    with pytest.raises(InputError, match=r'have another shape .*It was trained on 3 classes.*the data here has 2'):
        check_checkpoint(config, str(checkpoint))


def test_weights_where_mmengine_does_not_look(config, tmp_path):
    """It would load none of them, and say so only in its log."""
    model, path = build_model(config), tmp_path / 'own.pth'
    torch.save({'model': model.state_dict(), 'epoch': 1}, path)
    words = r"own\.pth has its weights under the key 'model', and MMEngine reads them under 'state_dict'\. Write such a"
    with pytest.raises(InputError, match=words):
        check_checkpoint(config, str(path))
    config.load_from = str(path)
    with pytest.raises(InputError, match=words):
        check_weights(config, model)
    torch.save({'state_dict': torch.load(path)['model']}, path)
    check_checkpoint(config, str(path))
    check_weights(config, model)


def test_explicit_checkpoint_that_is_damaged(config, checkpoint, tmp_path):
    assert check_resume(config, str(checkpoint), str(tmp_path)) == str(checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r'epoch_1.pth cannot be read: .*is truncated or damaged'):
        check_resume(config, str(checkpoint), str(tmp_path))
    # Also if it is the only one in the work dir.
    with pytest.raises(InputError, match=r'no checkpoint in .* can be read. .*Remove them to start again'):
        check_resume(config, 'auto', str(tmp_path))
    checkpoint.unlink()
    assert check_resume(config, 'auto', str(tmp_path)) is None


def test_checkpoint_of_weights_alone_cannot_go_on(config, checkpoint, tmp_path):
    torch.save({'state_dict': torch.load(checkpoint)['state_dict']}, checkpoint)
    with pytest.raises(InputError, match=r'has no meta and no optimizer.*--cfg-options load_from='):
        check_resume(config, str(checkpoint), str(tmp_path))


# Optimizers and hooks.


SGD = {'_delete_': True, 'type': 'SGD', 'lr': 0.1, 'weight_decay': 0.1}


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'optim_wrapper.optimizer': SGD}, 'is not of the kind of SGD'),
        ({'optim_wrapper.paramwise_cfg': None}, 'groups with .* parameters, that of the config 1 with'),
    ],
)
def test_optimizer_state_of_another_optimizer(config, checkpoint, tmp_path, options, words):
    model = build_model(config)
    optimizer = check_optimizer(config, model)
    torch.save({**torch.load(checkpoint), 'optimizer': optimizer.state_dict()}, checkpoint)
    assert check_resume(config, str(checkpoint), str(tmp_path), optimizer) == str(checkpoint)
    config.merge_from_dict(options)
    with pytest.raises(InputError, match=words):
        check_resume(config, str(checkpoint), str(tmp_path), check_optimizer(config, model))


@pytest.mark.parametrize(
    ('key', 'value', 'words'),
    [
        ('default_hooks.grc_monitor.intervall', 3, r"grc_monitor: GRCMonitorHook has no argument 'intervall'"),
        ('default_hooks.chekpoint', {'interval': 5}, r'chekpoint has no type. Did you mean default_hooks.checkpoint'),
        ('custom_hooks', [{'type': 'EMAHok'}], r"custom_hooks.0: there is no type 'EMAHok'. Did you mean EMAHook"),
        ('param_scheduler.0.ende', 3, r"param_scheduler.0: LinearLR has no argument 'ende'"),
        ('param_scheduler.1.type', 'CosineLR', r"param_scheduler.1: there is no type 'CosineLR'"),
        ('train_cfg.max_epoch', 3, r"train_cfg: EpochBasedTrainLoop has no argument 'max_epoch'"),
    ],
)
def test_parts_that_cannot_be_made(config, key, value, words):
    check_parts(config)
    config.merge_from_dict({key: value})
    with pytest.raises(InputError, match=words):
        check_parts(config)


@pytest.mark.parametrize(
    ('option', 'value', 'warned'),
    [
        (None, None, True),
        ('custom_hooks.0.skip_buffer', False, False),
        ('custom_hooks.0.skip_buffer', True, True),
        ('custom_hooks.0.type', 'EMAHook', False),
        ('model.backbone.grc', {'stages': ()}, False),
        ('model.backbone.grc', {'memory': False}, False),
    ],
)
def test_teacher_without_a_memory(config, said, option, value, warned):
    config.custom_hooks = [{'type': 'MeanTeacherHook'}]
    if option:
        config.merge_from_dict({option: value})
    check_training(argparse.Namespace(amp=False, auto_scale_lr=False, resume=None), config)
    assert [message.split(',')[0] for message in said] == warned * [
        'custom_hooks.0: MeanTeacherHook averages parameters alone'
    ]
    assert not warned or said[0].endswith('--cfg-options custom_hooks.0.skip_buffer=False')


# Weights to start from.


@pytest.fixture
def weights(tmp_path):
    """Write weights that cannot be read, and return the path."""

    def write(kind, state):
        path = tmp_path / f'{kind}.pth'
        if kind == 'pointer':
            path.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5290\n')
        elif kind == 'page':
            path.write_text('<!DOCTYPE html><html><body>Sign in</body></html>')
        elif kind == 'empty':
            path.write_bytes(b'')
        elif kind == 'namespace':
            torch.save({'model': state, 'args': argparse.Namespace(lr=0.1)}, path)
        else:
            torch.save(torch.nn.Linear(1, 1), path)
        return path

    return write


@pytest.mark.parametrize('how', ['load_from', 'init_cfg'])
@pytest.mark.parametrize('kind', ['pointer', 'page', 'empty', 'namespace', 'module'])
def test_weights_that_cannot_be_read(config, weights, kind, how):
    model = build_model(config)
    path = weights(kind, model.backbone.state_dict())
    if how == 'load_from':
        config.load_from = str(path)
    else:
        config.model.backbone.init_cfg = {'type': 'Pretrained', 'checkpoint': str(path)}
    with pytest.raises(InputError, match=rf'{path} cannot be read') as error:
        check_weights(config, model)
    assert 'weights_only' not in str(error.value)


@pytest.mark.parametrize('fault', ['missing', 'pointer', 'download'])
@pytest.mark.parametrize('option', ['load_from', 'model.backbone.init_cfg', 'model.roi_head.bbox_head.init_cfg'])
def test_weights_are_left_out_as_the_error_says(config, weights, tmp_path, option, fault):
    model = build_model(config)
    source = {
        'missing': str(tmp_path / 'missing.pth'),
        'pointer': str(weights('pointer', {})),
        'download': 'http://localhost:9/none.pth',
    }[fault]
    value = source if option == 'load_from' else {'type': 'Pretrained', 'checkpoint': source}
    config.merge_from_dict({option: value})
    with pytest.raises(InputError) as error:
        check_weights(config, model)
    (key,) = re.search(r'train without: --cfg-options (\S+)=None$', str(error.value)).groups()
    config.merge_from_dict({key: None})
    check_weights(config, model)


def start_from(config, path):
    config.model.backbone.init_cfg = {'type': 'Pretrained', 'checkpoint': str(path)}
    check_weights(config, build_model(config))


def test_backbone_weights_of_another_size(config, tmp_path):
    for name, options in (('own', {}), ('narrow', {'embed_dims': 8}), ('other', None)):
        if options is None:
            torch.save({'fc.weight': torch.zeros(3)}, tmp_path / 'other.pth')
        else:
            stock = PyramidVisionTransformer(**{'num_layers': [1, 1, 1, 1], 'embed_dims': 16, **options})
            torch.save(stock.state_dict(), tmp_path / f'{name}.pth')
    start_from(config, tmp_path / 'own.pth')
    with pytest.raises(InputError, match=r'narrow.pth, of backbone.init_cfg, do not fit: .*has the shape'):
        start_from(config, tmp_path / 'narrow.pth')
    with pytest.raises(InputError, match=r'other.pth, of backbone.init_cfg, do not fit: no tensor'):
        start_from(config, tmp_path / 'other.pth')


def test_weights_of_a_deeper_backbone_are_a_warning(config, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('mmgrc.models.convert.print_log', lambda message, **kw: said.append((message, kw['level'])))
    deep = PyramidVisionTransformer(num_layers=[2, 1, 1, 1], embed_dims=16)
    torch.save(deep.state_dict(), tmp_path / 'deep.pth')
    config.model.backbone.init_cfg = {'type': 'Pretrained', 'checkpoint': str(tmp_path / 'deep.pth')}
    build_model(config).backbone.init_weights()
    (message, level), *_ = said
    assert level == 30
    assert 'Unused blocks, such as layers.0.1.2.' in message


def test_detector_weights_of_another_detector(config, tmp_path):
    model = build_model(config)
    config.load_from = str(tmp_path / 'weights.pth')
    state = model.state_dict()
    torch.save({'state_dict': state}, config.load_from)
    check_weights(config, model)
    torch.save({'state_dict': model.backbone.state_dict()}, config.load_from)
    with pytest.raises(InputError, match=r'no tensor of .*weights.pth \(load_from\) fits the model'):
        check_weights(config, model)
    cache = next(key for key in state if key.endswith('.grc.cache'))
    torch.save({'state_dict': {**state, cache: state[cache][:, 1:]}}, config.load_from)
    with pytest.raises(InputError, match=rf'{cache} has the shape .*--resize-caches'):
        check_weights(config, model)
    check_weights(config, model, resumes=True)
    Path(config.load_from).unlink()
    check_weights(config, model, resumes=True)
    with pytest.raises(InputError, match='there are no weights at'):
        check_weights(config, model)
