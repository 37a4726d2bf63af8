"""The configs: found by name, trained for a step, saved and loaded."""

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmgrc.config import CONFIG_DIR, config_path

CONFIGS = sorted(str(p.relative_to(CONFIG_DIR)) for p in CONFIG_DIR.rglob('*.py') if '_base_' not in p.parts)


def build(name):
    init_default_scope('mmdet')
    config = Config.fromfile(f'mmgrc::{name}')
    depths = 'depths' if 'depths' in config.model.backbone else 'num_layers'
    config.merge_from_dict(
        {
            'model.backbone.init_cfg': None,
            # Large models at reduced depth; two blocks are a window and its shift.
            f'model.backbone.{depths}': [2, 1, 1, 1],
        }
    )
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    return config, model


@pytest.fixture
def batch(shapes):
    """Two training images of different sizes, through the shapes config's own loader."""
    init_default_scope('mmdet')
    loader = Config.fromfile('mmgrc::shapes/mask_rcnn_grc_pvt.py').train_dataloader
    loader.update(batch_size=2, num_workers=0, persistent_workers=False)
    loader.dataset.data_root = str(shapes)
    batch = next(iter(Runner.build_dataloader(loader, seed=0)))
    batch['inputs'][1] = batch['inputs'][1].repeat(1, 2, 1)
    batch['data_samples'][1].set_metainfo({'img_shape': tuple(batch['inputs'][1].shape[1:])})
    masks = batch['data_samples'][1].gt_instances.masks
    batch['data_samples'][1].gt_instances.masks = masks.pad(tuple(batch['inputs'][1].shape[1:]))
    return batch


# The baselines are their parents but for one key, see below.
@pytest.mark.parametrize('name', [name for name in CONFIGS if not name.startswith('baselines/')])
def test_trains_a_step_saves_and_loads(name, batch, tmp_path):
    config, model = build(name)
    assert config.custom_imports.imports == ['mmgrc']
    processes = 1 if name.startswith('shapes/') else 8
    assert config.auto_scale_lr.base_batch_size == processes * config.train_dataloader.batch_size
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    decays = {id(p): group['weight_decay'] for group in wrapper.optimizer.param_groups for p in group['params']}
    assert {decays[id(p)] for key, p in model.named_parameters() if key.endswith('grc.lam')} == {0}
    assert decays[id(next(p for key, p in model.named_parameters() if 'grc.update_gate.weight' in key))] > 0

    data = model.data_preprocessor(batch, training=True)
    losses, _ = model.parse_losses(model(**data, mode='loss'))
    losses.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, f'{key} gets no gradient'
        assert torch.isfinite(parameter.grad).all(), key

    torch.save(model.state_dict(), tmp_path / 'model.pth')
    _, other = build(name)
    other.load_state_dict(torch.load(tmp_path / 'model.pth'), strict=True)
    with torch.no_grad():
        first, second = (m.eval()(data['inputs'][:1], [data['data_samples'][0]], mode='tensor') for m in (model, other))
    flat = [torch.cat([t.flatten() for t in _tensors(out)]) for out in (first, second)]
    assert torch.equal(*flat)


def _tensors(value):
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)


@pytest.mark.parametrize('name', [name for name in CONFIGS if 'grc_pvt' in name and '/' not in name])
def test_paper_settings(name):
    config = Config.fromfile(f'mmgrc::{name}')
    assert config.optim_wrapper.optimizer == {'type': 'AdamW', 'lr': 1e-4, 'weight_decay': 1e-4}
    assert config.optim_wrapper.get('clip_grad') is None
    assert config.train_cfg.max_epochs == 12
    assert config.param_scheduler[0].end == 500
    assert config.param_scheduler[1].milestones == [8, 11]
    assert config.train_dataloader.batch_size == 2


@pytest.mark.parametrize('name', [name for name in CONFIGS if name.startswith('baselines/')])
def test_baselines_differ_in_the_memory_alone(name):
    plain = Config.fromfile(f'mmgrc::{name}')
    detector, backbone = name.removeprefix('baselines/').split('_pvt' if '_pvt' in name else '_swin')
    middle = '_grc_pvt' if '_pvt' in name else '_grc_swin'
    parent = Config.fromfile(f'mmgrc::{detector}{middle}{backbone}')
    assert plain.model.backbone.grc.stages == ()
    plain.model.backbone.grc.stages = parent.model.backbone.grc.stages
    assert plain.to_dict() == parent.to_dict()


def test_coco_root(monkeypatch):
    assert Config.fromfile('mmgrc::mask_rcnn_grc_pvt.py').val_evaluator.ann_file.startswith('data/coco/annotations/')
    monkeypatch.setenv('COCO_ROOT', '/elsewhere/coco')
    config = Config.fromfile('mmgrc::mask_rcnn_grc_pvt.py')
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        assert config[loader].dataset.data_root == '/elsewhere/coco'
    for evaluator in ('val_evaluator', 'test_evaluator'):
        assert config[evaluator].ann_file == '/elsewhere/coco/annotations/instances_val2017.json'


def test_own_configs_are_base_configs_elsewhere(tmp_path):
    (tmp_path / 'mine.py').write_text(
        "_base_ = 'mmgrc::mask_rcnn_grc_pvt.py'\nmodel = dict(backbone=dict(num_layers=[1] * 4))\n"
    )
    config = Config.fromfile(tmp_path / 'mine.py')
    assert config.model.backbone.num_layers == [1, 1, 1, 1]
    assert config.model.backbone.type == 'GRCPyramidVisionTransformer'
    init_default_scope('mmdet')
    assert type(MODELS.build(config.model)).__name__ == 'MaskRCNN'


def test_other_packages_resolve_as_before():
    config = get_config('mmdet::pvt/retinanet_pvt-t_fpn_1x_coco.py')
    assert config.model.backbone.type == 'PyramidVisionTransformer'
    with pytest.raises(FileNotFoundError, match=r'mmgrc::shapes/mask_rcnn_grc_pvt\.py'):
        config_path('mmgrc::nothing.py')
    assert config_path('a/b.py') == 'a/b.py'
