"""What several tests share: a small generated data set, and the tools run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmgrc.datasets import write_shapes

REPOSITORY = Path(__file__).parent.parent
SHAPES_CONFIG = 'configs/shapes/mask_rcnn_grc_pvt.py'
# Narrow and short: the tools are tried here, not the detector.
FAST = [
    'model.backbone.embed_dims=16',
    'model.neck.in_channels=[16,32,80,128]',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False',
    'test_dataloader.num_workers=0',
    'test_dataloader.persistent_workers=False',
    'default_hooks.logger.interval=1',
    'default_hooks.grc_monitor.interval=4',
    'randomness.seed=1',
    # So little training finds nothing above a threshold.
    'model.test_cfg.rcnn.score_thr=0.0',
]


@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    """A data set of 16 training and 4 validation images."""
    root = tmp_path_factory.mktemp('data') / 'shapes'
    write_shapes(root, images=16, val=4, size=(96, 64), seed=3)
    return root


@pytest.fixture(scope='session')
def run_tool(shapes):
    """Run a tool in the repository as a user does, on the small data set, with no network and no GPU."""

    def run(name, *args, timeout=300, env=None, **kwargs):
        command = [sys.executable, f'tools/{name}.py', *map(str, args)]
        environment = {**os.environ, 'SHAPES_ROOT': str(shapes), 'CUDA_VISIBLE_DEVICES': '', **(env or {})}
        return subprocess.run(
            command, cwd=REPOSITORY, env=environment, timeout=timeout, capture_output=True, text=True, **kwargs
        )

    return run


@pytest.fixture(scope='session')
def trained(tmp_path_factory, shapes):
    """A work dir after two epochs: checkpoints, logs of losses, mAP and memory, and the dumped config."""
    work_dir = tmp_path_factory.mktemp('work') / 'run'
    command = [sys.executable, 'tools/train.py', SHAPES_CONFIG, '--work-dir', str(work_dir), '--cfg-options', *FAST]
    subprocess.run(
        [*command, 'train_cfg.max_epochs=2'],
        cwd=REPOSITORY,
        env={**os.environ, 'SHAPES_ROOT': str(shapes), 'CUDA_VISIBLE_DEVICES': ''},
        check=True,
        capture_output=True,
        timeout=400,
    )
    return work_dir
