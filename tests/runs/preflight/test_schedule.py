"""Schedulers that end before the training does, and learning rates for other batch sizes."""

import pytest

from mmgrc.runs.config import load_config
from mmgrc.runs.preflight import check_batch_size, check_schedule
from tests.conftest import SHAPES_CONFIG

COSINE = {'type': 'CosineAnnealingLR', 'T_max': 12}
BY_STEP = {**COSINE, 'by_epoch': False}


@pytest.mark.parametrize(
    ('schedulers', 'words'),
    [
        ([{**COSINE, 'end': 12}], 'ends at epoch 12 of 36'),
        ({**COSINE, 'end': 12}, 'ends at epoch 12 of 36'),
        ([{**COSINE, 'end': 12}, {**COSINE, 'begin': 12, 'end': 24}], 'ends at epoch 24 of 36'),
        ([{**COSINE, 'end': 36}], None),
        ([{**COSINE, 'end': 50}], None),
        # Without an end.
        ([COSINE], None),
        ([{**COSINE, 'end': 12}, {'type': 'MultiStepLR', 'milestones': [20], 'begin': 12}], None),
        # A warm-up alone.
        ([{'type': 'LinearLR', 'start_factor': 0.1, 'end': 3}], None),
        # 36 epochs of 50 steps.
        ([{**BY_STEP, 'end': 600}], 'ends at iteration 600 of 1800'),
        ([{**BY_STEP, 'end': 1800}], None),
        ([{**BY_STEP, 'end': 600}, {**COSINE, 'end': 24}], 'ends at epoch 24 of 36'),
        ([{**BY_STEP, 'end': 1500}, {**COSINE, 'end': 24}], 'ends at iteration 1500 of 1800'),
        (None, None),
    ],
)
def test_training_by_epochs(config, said, schedulers, words):
    config.param_scheduler, config.train_cfg.max_epochs = schedulers, 36
    check_schedule(config, images=100)
    assert len(said) == bool(words)
    assert words is None or words in said[0]


def test_shorter_epochs(config, said):
    config.param_scheduler, config.train_cfg.max_epochs = [{**BY_STEP, 'end': 600}], 36
    config.train_dataloader.num_batch_per_epoch = 16
    check_schedule(config, images=100)
    assert not said
    config.train_dataloader.num_batch_per_epoch = 20
    check_schedule(config, images=100)
    assert 'ends at iteration 600 of 720' in said[0]


def test_training_by_iterations(config, said):
    loop = {'_delete_': True, 'type': 'IterBasedTrainLoop', 'max_iters': 500, 'val_interval': 100}
    config.merge_from_dict({'train_cfg': loop})
    config.param_scheduler = [{**BY_STEP, 'end': 400}]
    check_schedule(config, images=None)
    assert [message for message in said if 'ends at iteration 400 of 500' in message] == said
    # 500 iterations of 2 images are 10 epochs of 100 images.
    config.param_scheduler = [{**COSINE, 'end': 8}]
    check_schedule(config, images=None)
    assert len(said) == 1
    check_schedule(config, images=100)
    assert 'ends at epoch 8 of 10' in said[1]


def test_more_ranks_take_fewer_steps(config, said):
    config.param_scheduler, config.train_cfg.max_epochs = [{**BY_STEP, 'end': 600}], 36
    # 36 epochs of 17 steps. Of the last one, some ranks have no full batch.
    check_schedule(config, images=101, ranks=3)
    assert not said
    check_schedule(config, images=101, ranks=2)
    assert 'ends at iteration 600 of 936' in said[0]


@pytest.mark.parametrize(
    ('recipe', 'images'),
    [
        (SHAPES_CONFIG, 240),
        ('configs/shapes/mask_rcnn_grc_swin.py', 240),
        ('configs/small_data/mask_rcnn_grc_swin.py', 40),
        ('configs/mask_rcnn_grc_pvt.py', 117266),
        ('configs/mask_rcnn_grc_swin_3x.py', 117266),
        ('configs/more/dino_grc_swin.py', 117266),
    ],
)
def test_recipes(recipe, images, said):
    config = load_config(recipe)
    check_schedule(config, images, 1 if images < 1000 else 8)
    assert not said
    loop = config.train_cfg
    loop.update({key: 2 * loop[key] for key in ('max_epochs', 'max_iters') if key in loop})
    check_schedule(config, images, 1 if images < 1000 else 8)
    assert len(said) == 1


BATCH, COUNTS = 'train_dataloader.batch_size', 'optim_wrapper.accumulative_counts'


@pytest.mark.parametrize(
    ('options', 'ranks', 'scaled', 'words'),
    [
        ({}, 8, False, None),
        ({}, 1, True, None),
        ({'auto_scale_lr.enable': True}, 1, False, None),
        ({'auto_scale_lr': None}, 1, False, None),
        ({'auto_scale_lr.base_batch_size': None}, 1, False, None),
        ({BATCH: 16}, 1, False, None),
        ({COUNTS: 8}, 1, False, None),
        ({}, 1, False, '2 (batch_size=2, ranks=1), but the learning rate is for 16. --auto-scale-lr scales it'),
        ({BATCH: 4}, 8, False, '32 (batch_size=4, ranks=8), but the learning rate is for 16. -'),
        (
            {COUNTS: 4},
            1,
            False,
            '8 (batch_size=2, ranks=1, accumulative_counts=4), but the learning rate is for 16. Set ',
        ),
        # MMEngine scales for 2 images.
        (
            {COUNTS: 4},
            1,
            True,
            '8 (batch_size=2, ranks=1, accumulative_counts=4), but the learning rate is for 2. Set ',
        ),
    ],
)
def test_batch_size_of_the_learning_rate(options, ranks, scaled, words, said):
    config = load_config('configs/mask_rcnn_grc_pvt.py')
    config.merge_from_dict(options)
    check_batch_size(config, ranks, scaled)
    assert len(said) == bool(words)
    assert words is None or f'images per update of the weights: {words}' in said[0]


@pytest.mark.slow
def test_tool_warns(run_tool, tmp_path):
    # 4 steps an epoch. The last option is no hook, so that the run fails after the checks.
    data = ['train_dataloader.dataset.indices=4', 'train_dataloader.batch_size=1']
    options = [*data, 'train_cfg.max_epochs=200', 'default_hooks.grc_monitor=3']
    result = run_tool('train', SHAPES_CONFIG, '--work-dir', tmp_path, '--cfg-options', *options)
    assert result.returncode
    printed = result.stdout + result.stderr
    assert 'the last scheduler ends at iteration 600 of 800' in printed
    assert printed.count('weights: 1 (batch_size=1, ranks=1), but the learning rate is for 2.') == 1
