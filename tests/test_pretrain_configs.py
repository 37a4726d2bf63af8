"""The configs of pre-training: trained for a step, saved and loaded, and compared with mmpretrain's own."""

import copy
import re

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from mmgrc.runs.config import CONFIG_DIR, load_config
from mmgrc.runs.preflight import check_optimizer, check_parts
from tests.helpers.pretraining import MARKS

pytestmark = MARKS
# Those of classifiers. tests/test_configs.py has the others.
CONFIGS = sorted(
    str(p.relative_to(CONFIG_DIR)) for p in CONFIG_DIR.glob('pretrain/**/*.py') if 'mask_rcnn' not in p.name
)
IMAGENET = [name for name in CONFIGS if 'shapes' not in name]


def load(name):
    """The config with a backbone that is not deep. The first stage has two blocks: one plain and one shifted."""
    config = Config.fromfile(f'mmgrc::{name}')
    config.merge_from_dict({f'model.backbone.{"depths" if "swin" in name else "num_layers"}': [2, 1, 1, 1]})
    return config


def build(config):
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    np.random.seed(0)
    model = copy.deepcopy(config.model)
    # As MMEngine's Runner does it.
    model.setdefault('data_preprocessor', config.get('data_preprocessor'))
    model = MODELS.build(model)
    model.init_weights()
    return model


def images(config, seed=0, size=None):
    """Two images with labels, as a loader gives them."""
    from mmpretrain.structures import DataSample

    size = size or config.model.backbone.get('pretrain_img_size', 224)
    generator = torch.Generator().manual_seed(seed)
    labels = [1, config.model.head.num_classes - 1]
    return {
        'inputs': torch.randint(0, 256, (2, 3, size, size), generator=generator, dtype=torch.uint8),
        'data_samples': [DataSample().set_gt_label(label) for label in labels],
    }


def losses(model, data):
    data = model.data_preprocessor(copy.deepcopy(data), training=True)
    return model.parse_losses(model(**data, mode='loss'))[0]


@pytest.mark.parametrize(
    'name', [name if 'grc_pvt.py' in name else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_trains_a_step_saves_loads_and_predicts(name, tmp_path):
    config = load(name)
    assert config.custom_imports.imports == ['mmgrc']
    assert {'AtomicCheckpointHook', 'GRCMonitorHook'} <= {hook.type for hook in config.default_hooks.values()}
    assert 'mmgrc_runtime' not in config
    processes = 1 if 'shapes' in name else 8
    assert config.auto_scale_lr == {'enable': False, 'base_batch_size': processes * config.train_dataloader.batch_size}
    model = build(config)
    check_optimizer(config, model, auto_scale_lr=True)
    check_parts(config)
    data = images(config)
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    loss = losses(model, data)
    assert torch.isfinite(loss)
    loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, f'{key} gets no gradient'
    wrapper.step()
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert not torch.equal(model.state_dict()['head.fc.weight'], before['head.fc.weight'])

    torch.save(model.state_dict(), tmp_path / 'model.pth')
    other = build(config)
    other.load_state_dict(torch.load(tmp_path / 'model.pth'), strict=True)
    scores = [[sample.pred_score for sample in m.eval().test_step(data)] for m in (model, other)]
    for left, right in zip(*scores, strict=True):
        assert torch.equal(left, right)
        assert len(left) == config.model.head.num_classes


@pytest.mark.parametrize('name', ['pretrain/grc_pvt.py', 'pretrain/grc_swin.py', 'pretrain/shapes/grc_pvt.py'])
def test_no_weight_decay_on_lambda_norms_biases_and_position_tables(name):
    config = load(name)
    model = build(config)
    groups = build_optim_wrapper(model, config.optim_wrapper).optimizer.param_groups
    decays = {id(p): group['weight_decay'] for group in groups for p in group['params']}
    exempt = {key for key, p in model.named_parameters() if decays[id(p)] == 0}
    tables = {key for key, _ in model.named_parameters() if re.search(r'pos_embed|relative_position_bias_table', key)}
    flat = {key for key, p in model.named_parameters() if p.ndim == 1}
    assert tables
    assert {key for key in flat if key.endswith('grc.lam')}
    assert exempt == tables | flat
    assert {decays[id(p)] for key, p in model.named_parameters() if key not in exempt} == {0.05}


@pytest.mark.parametrize('name', IMAGENET)
def test_recipes_of_the_paper(name):
    """PVT's code and Swin's: what its configs say of drop path and clipping."""
    config = Config.fromfile(f'mmgrc::{name}')
    large = 'medium' in name or 'b3' in name or 'b4' in name
    swin = 'swin' in name
    assert config.optim_wrapper.optimizer.lr == 5e-4 * 1024 / 512
    assert config.optim_wrapper.optimizer.weight_decay == 0.05
    assert config.model.backbone.drop_path_rate == (0.2 if swin else 0.3 if large else 0.1)
    assert config.optim_wrapper.clip_grad == ({'max_norm': 5.0} if swin else {'max_norm': 1.0} if large else None)
    assert config.train_cfg.max_epochs == 300
    warmup, cosine = config.param_scheduler
    assert warmup.end == cosine.begin == (20 if swin else 5)
    assert (warmup.start_factor, cosine.eta_min) == (1e-3, 1e-5)
    assert config.train_dataloader.sampler.type == ('DefaultSampler' if swin else 'RepeatAugSampler')
    assert config.train_dataloader.batch_size == 128
    assert [augment.type for augment in config.model.train_cfg.augments] == ['Mixup', 'CutMix']


def test_baselines_differ_in_the_memory_alone():
    baselines = [name for name in CONFIGS if 'baselines/' in name]
    assert {name.replace('baselines/', 'grc_') for name in baselines} == {n for n in IMAGENET if 'grc_' in n}
    for name in baselines:
        plain = Config.fromfile(f'mmgrc::{name}')
        parent = Config.fromfile(f'mmgrc::{name.replace("baselines/", "grc_")}')
        assert plain.model.backbone.grc.stages == ()
        plain.model.backbone.grc = parent.model.backbone.grc
        assert plain.to_dict() == parent.to_dict()


def test_imagenet_root(monkeypatch):
    monkeypatch.setenv('IMAGENET_ROOT', '/elsewhere/imagenet')
    config = Config.fromfile('mmgrc::pretrain/grc_swin.py')
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        assert config[loader].dataset.data_root == '/elsewhere/imagenet'
    monkeypatch.delenv('IMAGENET_ROOT')
    assert Config.fromfile('mmgrc::pretrain/grc_swin.py').val_dataloader.dataset.data_root == 'data/imagenet'


def test_stock_swin_is_the_swin_of_mmpretrain():
    """Swin-Tiny without a memory gives the loss and the gradients of mmpretrain's own, on its weights and a batch."""
    ours = Config.fromfile('mmgrc::pretrain/baselines/swin.py')
    stock = get_config('mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py')
    for config in (ours, stock):
        config.model.backbone.drop_path_rate = 0.0
    models = [build(ours), build(stock)]
    assert type(models[1].backbone).__module__.startswith('mmpretrain.')
    models[0].load_state_dict(models[1].state_dict(), strict=True)
    data = images(ours, seed=1)
    values = []
    for model in models:
        torch.manual_seed(3)
        np.random.seed(3)
        model.train()
        value = losses(model, data)
        value.backward()
        values.append(value.item())
    assert values[0] == pytest.approx(values[1], abs=1e-5)
    gradients = [dict(model.named_parameters()) for model in models]
    for key in ('backbone.patch_embed.projection.weight', 'backbone.stages.2.blocks.3.attn.w_msa.qkv.weight'):
        torch.testing.assert_close(*(g[key].grad for g in gradients), rtol=1e-3, atol=1e-6)


def test_options_of_a_classifier_are_known(monkeypatch):
    said = []
    monkeypatch.setattr('mmgrc.runs.config.print_log', lambda message, **_: said.append(message))
    known = {'val_evaluator.thrs': 0.5, 'model.head.topk': [1], 'model.backbone.with_cp': True}
    load_config('mmgrc::pretrain/grc_pvt.py', known)
    assert not said
    load_config('mmgrc::pretrain/grc_pvt.py', {'model.head.topc': 1})
    assert 'nothing reads model.head.topc. Did you mean model.head.topk?' in said[0]
