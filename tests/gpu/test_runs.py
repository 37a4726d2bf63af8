"""`tools/train.py` on a GPU: the demo's config, mixed precision, and a run that is resumed."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch

from tests.conftest import REPOSITORY, SHAPES_CONFIG
from tests.engine.test_resume import EPOCHS, OPTIONS, SEED, STEPS, losses, start_again

pytestmark = [pytest.mark.xdist_group('gpu'), pytest.mark.slow]


def train(work_dir, shapes, *options, flags=()):
    """Train on a GPU in a process of its own, since one that has used CUDA cannot be forked."""
    result = subprocess.run(
        [sys.executable, 'tools/train.py', SHAPES_CONFIG, '--work-dir', work_dir, *flags, '--cfg-options', *options],
        cwd=REPOSITORY,
        env={**os.environ, 'SHAPES_ROOT': str(shapes)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, f'{result.stdout[-2000:]}\n{result.stderr[-3000:]}'


@pytest.mark.parametrize('flags', [(), ('--amp',)])
def test_the_demo_trains(shapes, tmp_path, flags):
    steps = ['train_dataloader.dataset.indices=8', 'train_cfg.max_epochs=1', 'default_hooks.logger.interval=1']
    train(tmp_path / 'run', shapes, *steps, 'val_dataloader.dataset.indices=2', flags=flags)
    (log,) = (tmp_path / 'run').glob('*/vis_data/scalars.json')
    records = [record for record in map(json.loads, log.open()) if 'loss' in record]
    assert len(records) == STEPS
    # MMEngine logs the memory of a GPU.
    assert all(math.isfinite(record['loss']) and record['memory'] > 0 for record in records)
    state = torch.load(tmp_path / 'run' / 'epoch_1.pth', map_location='cpu')['state_dict']
    caches = [value for name, value in state.items() if name.endswith('grc.cache')]
    assert len(caches) == 8
    assert all(cache.any() and torch.isfinite(cache).all() for cache in caches)


def weights(work_dir):
    return torch.load(work_dir / f'epoch_{EPOCHS}.pth', map_location='cpu')['state_dict']


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_resumed_run_ends_as_the_unbroken_one(shapes, tmp_path):
    """Bit for bit if the GPU repeats itself bit for bit, which two resumed runs show. Otherwise up to its rounding."""
    options = [*OPTIONS, SEED, f'train_cfg.max_epochs={EPOCHS}']
    unbroken = tmp_path / 'unbroken'
    train(unbroken, shapes, *options)
    resumed = [start_again(unbroken, tmp_path / name, 1) for name in ('first', 'second')]
    for work_dir in resumed:
        train(work_dir, shapes, *options, flags=['--resume'])
    expected, found = losses(unbroken), losses(resumed[0])
    assert sorted(found) == list(range(STEPS + 1, EPOCHS * STEPS + 1))
    # The first step after resuming: weights, caches, batch and random numbers are those of the unbroken run.
    first = STEPS + 1
    assert found[first] == pytest.approx(expected[first], rel=1e-4)
    if same(*map(weights, resumed)):
        assert same(weights(resumed[0]), weights(unbroken))
        assert all(found[step] == expected[step] for step in found)
