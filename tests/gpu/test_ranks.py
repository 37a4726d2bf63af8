"""Ranks on GPUs, as many as there are: NCCL keeps their caches equal."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch

from tests.conftest import NARROW, REPOSITORY, SHAPES_CONFIG
from tests.engine.test_ranks import STEPS, equal, images, train
from tests.gpu.conftest import DEVICE
from tests.helpers.backbones import FAMILIES, build
from tests.helpers.processes import run_ranks

pytestmark = [pytest.mark.xdist_group('gpu'), pytest.mark.slow]


def train_share(rank, family, world_size):
    """Train on the share of a rank. The CPU gets the caches after each step."""
    batches = [images(2 * world_size, step)[2 * rank : 2 * rank + 2].to(DEVICE) for step in range(STEPS)]
    after = train(build(family).to(DEVICE), batches)
    return [{name: cache.cpu() for name, cache in step.items()} for step in after]


@pytest.mark.parametrize('family', FAMILIES)
def test_ranks_hold_the_caches_of_one_process_on_the_joined_batch(family, tmp_path):
    count = torch.cuda.device_count()
    ranks = run_ranks(train_share, count, tmp_path, family, count, backend='nccl')
    alone = train(build(family), [images(2 * count, step) for step in range(STEPS)])
    for step in range(STEPS):
        assert all(equal(rank[step], ranks[0][step]) for rank in ranks)
        for name, cache in alone[step].items():
            assert cache.any()
            torch.testing.assert_close(ranks[0][step][name], cache, rtol=0, atol=1e-4 * cache.abs().max().item())


def test_launcher_trains_without_drift(shapes, tmp_path):
    count, work_dir = torch.cuda.device_count(), tmp_path / 'run'
    options = [*NARROW, 'default_hooks.grc_monitor.interval=1', 'train_cfg.max_epochs=1']
    result = subprocess.run(
        ['tools/dist_train.sh', SHAPES_CONFIG, str(count), '--work-dir', work_dir, '--cfg-options', *options],
        cwd=REPOSITORY,
        env={**os.environ, 'SHAPES_ROOT': str(shapes), 'PYTHON': sys.executable},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    records = [json.loads(line) for line in log.open()]
    losses = [record['loss'] for record in records if 'loss' in record]
    drifts = [value for record in records for name, value in record.items() if name.startswith('grc_rank_drift/')]
    assert losses
    assert all(math.isfinite(value) for value in losses)
    assert bool(drifts) == (count > 1)
    assert not any(drifts)
    state = torch.load(work_dir / 'epoch_1.pth')['state_dict']
    assert all(value.any() for name, value in state.items() if name.endswith('grc.cache'))
