"""What several tests share: a small generated data set, and a way to run the tools as a user does."""

import gc
import os
import subprocess
from pathlib import Path

import pytest

from mmgrc.datasets import write_shapes
from tests.helpers import quick_configs
from tests.helpers.forked_python import forked_python

REPOSITORY = Path(__file__).parent.parent
SHAPES_CONFIG = 'configs/shapes/mask_rcnn_grc_pvt.py'
# The shapes config, narrow and in one process: for tests of everything around the detector.
NARROW = (
    'model.backbone.embed_dims=8',
    'model.backbone.num_layers=[1,1,1,1]',
    'model.neck.in_channels=[8,16,40,64]',
    'model.train_cfg.rcnn.sampler.num=16',
    'model.test_cfg.rcnn.score_thr=0.0',
    *(f'{loader}_dataloader.num_workers=0' for loader in ('train', 'val', 'test')),
    *(f'{loader}_dataloader.persistent_workers=False' for loader in ('train', 'val', 'test')),
    'default_hooks.logger.interval=1',
)
# With two blocks in each stage, as in the config.
FAST = [
    *NARROW,
    'model.backbone.num_layers=[2,2,2,2]',
    'default_hooks.grc_monitor.interval=4',
    'randomness.seed=1',
]


quick_configs.remember()


def pytest_collection_finish():
    """Leave what was imported out of Python's searches for garbage. MMEngine starts one for each data set."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    """A data set of 16 training and 4 validation images."""
    root = tmp_path_factory.mktemp('data') / 'shapes'
    write_shapes(root, images=16, val=4, size=(96, 64), seed=3)
    return root


@pytest.fixture(scope='session')
def python():
    """A `python` that has made the imports of the tools before it is started."""
    with forked_python(REPOSITORY) as path:
        yield path


@pytest.fixture(scope='session')
def run_tool(python, shapes):
    """Run a tool in the repository as a user does, on the small data set, with no network and no GPU."""

    def run(name, *args, timeout=300, env=None, **kwargs):
        command = [python, f'tools/{name}.py', *map(str, args)]
        environment = {**os.environ, 'SHAPES_ROOT': str(shapes), 'CUDA_VISIBLE_DEVICES': '', **(env or {})}
        return subprocess.run(
            command, cwd=REPOSITORY, env=environment, timeout=timeout, capture_output=True, text=True, **kwargs
        )

    return run


@pytest.fixture(scope='session')
def trained(tmp_path_factory, run_tool):
    """A work dir after two epochs: both checkpoints, logs of losses, mAP and memory, and the dumped config."""
    work_dir = tmp_path_factory.mktemp('work') / 'run'
    options = [*FAST, 'train_cfg.max_epochs=2']
    run_tool('train', SHAPES_CONFIG, '--work-dir', work_dir, '--cfg-options', *options, check=True)
    return work_dir
