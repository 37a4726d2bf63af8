"""The configs: found by name, trained for a step, saved and loaded."""

import copy
import re

import pytest
import torch
from mmcv.ops.nms import NMSop
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmgrc.runs.config import CONFIG_DIR, load_config
from mmgrc.runs.error import InputError
from tests.conftest import REPOSITORY

# Those of detectors. tests/test_pretrain_configs.py has the others.
CONFIGS = sorted(
    str(p.relative_to(CONFIG_DIR))
    for p in CONFIG_DIR.rglob('*.py')
    if '_base_' not in p.parts and ('pretrain' not in p.parts or 'mask_rcnn' in p.name)
)


# What was trained in this process already. At reduced depth the recipes of some sizes are one and the same.
TRAINED = []


def load(name):
    """The config, with a model that is not deep, fetches no weights and has a small box head."""
    config = Config.fromfile(f'mmgrc::{name}')
    depths = 'depths' if 'depths' in config.model.backbone else 'num_layers'
    # Two blocks: one plain and one shifted.
    config.merge_from_dict({'model.backbone.init_cfg': None, f'model.backbone.{depths}': [2, 1, 1, 1]})
    for part in ('train_cfg', 'test_cfg'):
        lighten(config.model[part] or {})
    if 'num_queries' in config.model:
        # The small images have fewer tokens than DINO has queries.
        config.model.num_queries = 20
    if 'roi_head' in config.model:
        heads = config.model.roi_head.bbox_head
        for head in heads if isinstance(heads, list) else [heads]:
            head.fc_out_channels = 64
    return config


def build(config):
    init_default_scope('mmdet')
    torch.manual_seed(0)
    # A detector may write into its config.
    model = MODELS.build(copy.deepcopy(config.model))
    model.init_weights()
    return model


def lighten(cfg):
    """Few regions, and no threshold on the score, so that an untrained detector predicts something."""
    for key, value in cfg.items():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                lighten(part)
        if key == 'score_thr':
            cfg[key] = 0.0
        elif key in ('nms_pre', 'max_per_img', 'num') and isinstance(value, int):
            cfg[key] = min(value, 20)


@pytest.fixture
def batch(shapes):
    """Two training images of different sizes, through the shapes config's own loader."""
    init_default_scope('mmdet')
    loader = Config.fromfile('mmgrc::shapes/mask_rcnn_grc_pvt.py').train_dataloader
    loader.update(batch_size=2, num_workers=0, persistent_workers=False)
    loader.dataset.data_root = str(shapes)
    batch = next(iter(Runner.build_dataloader(loader, seed=0)))
    batch['inputs'][1] = batch['inputs'][1].repeat(1, 2, 1)
    size = tuple(batch['inputs'][1].shape[1:])
    sample = batch['data_samples'][1]
    sample.set_metainfo({'img_shape': size, 'ori_shape': size})
    sample.gt_instances.masks = sample.gt_instances.masks.pad(size)
    for sample in batch['data_samples']:
        sample.set_metainfo({'scale_factor': (1.0, 1.0)})
    return batch


@pytest.mark.parametrize(
    'name', [name if 'shapes/mask_rcnn' in name else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_trains_a_step_saves_loads_and_predicts(name, batch, tmp_path):
    config = load(name)
    assert config.custom_imports.imports == ['mmgrc']
    assert {'AtomicCheckpointHook', 'GRCMonitorHook'} <= {hook.type for hook in config.default_hooks.values()}
    # The shared parts of the bases are removed from the keys that carry them.
    assert not {'coco_root', 'mmgrc_runtime', 'small_data'} & config.keys()
    processes = 1 if name.startswith(('shapes/', 'pretrain/shapes/', 'small_data/')) else 8
    assert config.auto_scale_lr.base_batch_size == processes * config.train_dataloader.batch_size
    # mmdet's --auto-scale-lr needs it.
    assert config.auto_scale_lr.enable is False
    parts = [config[part].to_dict() for part in ('model', 'optim_wrapper', 'val_evaluator')]
    if parts in TRAINED:
        return
    model = build(config)
    if 'baselines/' not in name:
        wrapper = build_optim_wrapper(model, config.optim_wrapper)
        decays = {id(p): group['weight_decay'] for group in wrapper.optimizer.param_groups for p in group['params']}
        assert {decays[id(p)] for key, p in model.named_parameters() if key.endswith('grc.lam')} == {0}
        assert decays[id(next(p for key, p in model.named_parameters() if 'grc.update_gate.weight' in key))] > 0

    data = model.data_preprocessor(batch, training=True)
    check_step(model, data)

    torch.save(model.state_dict(), tmp_path / 'model.pth')
    other = MODELS.build(config.model)
    other.load_state_dict(torch.load(tmp_path / 'model.pth'), strict=True)
    first, second = (predict(m, data) for m in (model, other))
    assert len(first.bboxes) > 0
    assert ('masks' in first) == ('segm' in config.val_evaluator.metric)
    for key, value in first.items():
        assert torch.equal(value, second.get(key)), key
    TRAINED.append(parts)


def check_step(model, data, scale=1.0):
    losses, _ = model.parse_losses(model(**data, mode='loss'))
    (scale * losses).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, f'{key} gets no gradient'
        assert torch.isfinite(parameter.grad).all(), key


@torch.no_grad()
def predict(model, data):
    sample = copy.deepcopy(data['data_samples'][0])
    # mmdet's Cascade R-CNN flips masks back, which fails for tensors. Test images are not flipped.
    sample.set_metainfo({'flip': False})
    return model.eval()(data['inputs'][:1], [sample], mode='predict')[0].pred_instances


# The COCO configs are the same with wider heads, which take long in half precision on a CPU.
@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in CONFIGS if re.fullmatch(r'shapes/\w+\.py', name)])
def test_mixed_precision(name, batch, monkeypatch):
    # What `--amp` does. mmcv's NMS supports half precision only on GPUs.
    nms = NMSop.forward
    monkeypatch.setattr(NMSop, 'forward', lambda ctx, boxes, scores, *a: nms(ctx, boxes.float(), scores.float(), *a))
    model = build(load(name))
    with torch.autocast('cpu', torch.float16):
        # Zero padding has no variance. There the gradient of PVTv2's first LayerNorm, MMDetection's too, exceeds fp16's
        # range, and a gradient scaler reduces its scale to a value such as this.
        check_step(model, model.data_preprocessor(batch, training=True), scale=2.0**-10)
    caches = [branch.cache for branch in model.backbone.grc_layers().values()]
    assert caches
    assert all(cache.dtype == torch.float32 and cache.any() for cache in caches)


@pytest.mark.parametrize('name', [name for name in CONFIGS if 'grc_pvt' in name and '/' not in name])
def test_paper_settings(name):
    config = Config.fromfile(f'mmgrc::{name}')
    assert config.optim_wrapper.optimizer == {'type': 'AdamW', 'lr': 1e-4, 'weight_decay': 1e-4}
    assert config.optim_wrapper.get('clip_grad') is None
    assert config.train_cfg.max_epochs == 12
    assert config.param_scheduler[0].end == 500
    assert config.param_scheduler[1].milestones == [8, 11]
    assert config.train_dataloader.batch_size == 2


@pytest.mark.parametrize('name', [name for name in CONFIGS if 'baselines/' in name])
def test_baselines_differ_in_the_memory_alone(name):
    plain = Config.fromfile(f'mmgrc::{name}')
    parent = Config.fromfile('mmgrc::' + re.sub(r'baselines/(mask_rcnn|retinanet)', r'\1_grc', name))
    assert plain.model.backbone.grc.stages == ()
    assert parent.model.backbone.grc.get('stages') != ()
    plain.model.backbone.grc = parent.model.backbone.grc
    assert plain.to_dict() == parent.to_dict()


def test_each_recipe_has_its_baseline():
    grc = [
        name
        for name in CONFIGS
        if re.fullmatch(r'(shapes/)?(mask_rcnn|retinanet)_grc_\w+\.py', name) and '_3x' not in name
    ]
    assert len(grc) == 24 + 6
    assert set(CONFIGS) > {re.sub(r'(mask_rcnn|retinanet)_grc', r'baselines/\1', name) for name in grc}


@pytest.mark.parametrize('name', ['mask_rcnn_grc_swin.py', 'mask_rcnn_grc_swin_3x.py'])
def test_swin_recipes_are_those_of_mmdet(name):
    ours = Config.fromfile(f'mmgrc::{name}')
    recipe = 'ms-crop-3x' if '3x' in name else '1x'
    stock = get_config(f'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_{recipe}_coco.py')
    for key in ('train_cfg', 'param_scheduler', 'auto_scale_lr', 'train_pipeline'):
        assert unscoped(ours[key]) == unscoped(stock[key]), key
    assert unscoped(ours.optim_wrapper.optimizer) == stock.optim_wrapper.optimizer
    assert unscoped(ours.train_dataloader.dataset.pipeline) == unscoped(stock.train_dataloader.dataset.pipeline)


def unscoped(value):
    """The config without MMEngine's marks of a base from another package."""
    if isinstance(value, dict):
        return {key: unscoped(inner) for key, inner in value.items() if key != '_scope_'}
    return [unscoped(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    'name', ['mask_rcnn_grc_pvt.py', 'retinanet_grc_swin.py', 'mask_rcnn_grc_swin_3x.py', 'more/dino_grc_swin.py']
)
def test_coco_root(name, monkeypatch):
    monkeypatch.delenv('COCO_ROOT', raising=False)
    assert Config.fromfile(f'mmgrc::{name}').val_evaluator.ann_file.startswith('data/coco/annotations/')
    monkeypatch.setenv('COCO_ROOT', '/elsewhere/coco')
    config = Config.fromfile(f'mmgrc::{name}')
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        assert config[loader].dataset.data_root == '/elsewhere/coco'
    for evaluator in ('val_evaluator', 'test_evaluator'):
        assert config[evaluator].ann_file == '/elsewhere/coco/annotations/instances_val2017.json'


def test_mmdetections_own_config_becomes_a_grc_one_by_the_options_of_the_page():
    page = (REPOSITORY / 'docs' / 'other_detectors.md').read_text()
    command = re.search(r'tools/train\.py (mmdet::\S+) --cfg-options (.+)', page)
    options = dict(option.split('=') for option in command[2].split())
    config = load_config(command[1], {key: int(v) if v.isdigit() else v for key, v in options.items()})
    config.model.backbone.init_cfg = None
    init_default_scope('mmdet')
    model = MODELS.build(config.model)
    assert len(model.backbone.grc_layers()) == sum(config.model.backbone.depths)
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    decays = {id(p): group['weight_decay'] for group in wrapper.optimizer.param_groups for p in group['params']}
    assert {decays[id(p)] for key, p in model.named_parameters() if key.endswith('grc.lam')} == {0}
    with pytest.raises(InputError, match='mmdet::'):
        load_config('mmdet::nothing.py')
