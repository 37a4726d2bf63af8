"""Options that nothing reads are reported with the most similar name. Options that are read are not."""

import pytest
from mmengine.config import Config

from mmgrc.runs.config import CONFIG_DIR, load_config
from mmgrc.runs.options import unused_options
from tests.conftest import FAST, SHAPES_CONFIG


@pytest.fixture(scope='module')
def shapes_config():
    return load_config(SHAPES_CONFIG).to_dict()


def unused(config, key, value):
    merged = Config(config)
    merged.merge_from_dict({key: value})
    return list(unused_options(config, merged.to_dict(), [key]))


@pytest.mark.parametrize(
    ('option', 'words'),
    [
        ('train_dataloder.batch_size=1', 'nothing reads train_dataloder. Did you mean train_dataloader?'),
        ('train_dataloader.batch_sise=1', 'Did you mean train_dataloader.batch_size?'),
        ('train_dataloader.dataset.indice=1', 'Did you mean train_dataloader.dataset.indices?'),
        ('train_dataloader.dataset.pipeline.2.probe=1', 'Did you mean train_dataloader.dataset.pipeline.2.prob?'),
        ('default_hooks.chekpoint.interval=5', 'Did you mean default_hooks.checkpoint?'),
        ('default_hooks.checkpoint.intervall=5', 'Did you mean default_hooks.checkpoint.interval?'),
        ('model.backbone.drop_path_rat=0', 'Did you mean model.backbone.drop_path_rate?'),
        ('model.rpn_head.anchor_generator.scale=8', 'Did you mean model.rpn_head.anchor_generator.scales?'),
        ('model.test_cfg.rcnn.score_th=0.1', 'Did you mean model.test_cfg.rcnn.score_thr?'),
        ('optim_wrapper.optimizer.lrr=1', 'Did you mean optim_wrapper.optimizer.lr?'),
        ('optim_wrapper.accumulative_count=2', 'Did you mean optim_wrapper.accumulative_counts?'),
        ('train_cfg.max_epoch=1', 'Did you mean train_cfg.max_epochs?'),
        ('val_evaluator.metrics=bbox', 'Did you mean val_evaluator.metric'),
        ('param_scheduler.0.milestone=3', 'nothing reads param_scheduler.0.milestone.'),
        # A variable of the config, which has been evaluated already.
        (
            'data_root=elsewhere',
            'Set where it is used: test_dataloader.dataset.data_root, train_dataloader.dataset.data',
        ),
        ('nonsense=1', 'nothing reads nonsense'),
    ],
)
def test_option_that_nothing_reads(shapes_config, option, words):
    key, value = option.split('=')
    said = unused(shapes_config, key, value)
    assert len(said) == 1
    assert said[0].startswith(f'the option {key}: nothing reads ')
    assert words in said[0]


@pytest.mark.parametrize(
    'key',
    [
        *(option.split('=')[0] for option in FAST),
        'load_from',
        'work_dir',
        'resume',
        'compile',
        'find_unused_parameters',
        'auto_scale_lr.enable',
        'model.backbone.init_cfg.checkpoint',
        'model.backbone.with_cp',
        'model.backbone.grc.variant',
        'model.backbone.grc.lambda_init',
        'model.roi_head.mask_head',
        'model.test_cfg.rcnn.mask_thr_binary',
        'optim_wrapper.type',
        'optim_wrapper.clip_grad.max_norm',
        'optim_wrapper.paramwise_cfg.custom_keys.absolute_pos_embed.decay_mult',
        'optim_wrapper.optimizer.betas',
        'optim_wrapper.accumulative_counts',
        'default_hooks.checkpoint.max_keep_ckpts',
        'default_hooks.grc_monitor.priority',
        'default_hooks.early_stopping.type',
        'train_dataloader.prefetch_factor',
        'train_dataloader.batch_sampler',
        'train_dataloader.dataset.indices',
        'train_dataloader.dataset.filter_cfg.min_size',
        'train_dataloader.dataset.pipeline.2.direction',
        'val_evaluator.classwise',
        'test_evaluator.format_only',
        'train_cfg.dynamic_intervals',
        'env_cfg.dist_cfg.backend',
        'visualizer.vis_backends',
        'param_scheduler.0.convert_to_iter_based',
        'randomness.deterministic',
    ],
)
def test_option_that_is_read(shapes_config, key):
    assert not unused(shapes_config, key, 1)


def test_options_are_merged_and_said(said):
    config = load_config(SHAPES_CONFIG, {'train_dataloder.batch_size': 1, 'train_cfg.max_epochs': 3})
    assert config.train_cfg.max_epochs == 3
    assert said == [
        'the option train_dataloder.batch_size: nothing reads train_dataloder. Did you mean train_dataloader?'
    ]


def test_misspelt_entry_of_a_config():
    config = Config({'train_dataloder': {'batch_size': 2}, 'custom_hook': [], 'train_pipeline': [], 'norm_cfg': {}})
    assert list(unused_options(config, config, ())) == [
        'the entry train_dataloder of the config: nothing reads it. Did you mean train_dataloader?',
        'the entry custom_hook of the config: nothing reads it. Did you mean custom_hooks?',
    ]


@pytest.mark.parametrize('name', ['mask_rcnn_grc_swin.py', 'more/dino_grc_swin.py'])
def test_our_configs_have_none(said, name):
    load_config(str(CONFIG_DIR / name))
    assert not said
