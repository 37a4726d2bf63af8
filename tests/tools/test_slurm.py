"""The Slurm launchers under a real Slurm of one machine: two tasks, a stop before the time limit, a requeue."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
import yaml

from mmgrc.datasets import write_shapes
from mmgrc.engine.ranks import read_slurm_environment
from tests.conftest import NARROW, REPOSITORY, SHAPES_CONFIG

PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'srun', 'sbatch')
pytestmark = [
    pytest.mark.xdist_group('slurm'),
    pytest.mark.slow,
    pytest.mark.skipif(
        any(shutil.which(name, path=f'{os.environ["PATH"]}:/usr/sbin') is None for name in PROGRAMS),
        reason='Slurm is not installed (Debian: apt-get install --no-install-recommends slurm-wlm munge)',
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason='slurmd must be started by root'),
]

EPOCHS, STEPS = 4, 2  # 4 images, 2 ranks
OPTIONS = [
    *NARROW,
    'train_dataloader.batch_size=1',
    f'train_cfg.max_epochs={EPOCHS}',
    'train_cfg.val_interval=100',
    'randomness.seed=2',
]


@pytest.fixture(scope='module')
def slurm(python):
    """The environment of a user of a Slurm that is ended with the tests."""
    # munge asks for a path that all may read, which pytest's folders are not.
    folder = Path(tempfile.mkdtemp(prefix='mmgrc-slurm-', dir='/var/tmp'))
    folder.chmod(0o755)
    path = f'{os.environ["PATH"]}:/usr/sbin'
    try:
        subprocess.run(
            [REPOSITORY / 'tests/helpers/slurm/start.sh', folder],
            check=True,
            timeout=60,
            env={**os.environ, 'PATH': path},
        )
        yield {
            **{name: value for name, value in os.environ.items() if not name.startswith(('SLURM', 'MASTER_'))},
            'SLURM_CONF': str(folder / 'slurm.conf'),
            'PATH': path,
            'PYTHON': str(python),
            'CUDA_VISIBLE_DEVICES': '',
            'OMP_NUM_THREADS': '1',
            # Two tasks on nodes without a GPU.
            'GPUS': '2',
            'GPUS_PER_NODE': '0',
            'CPUS_PER_TASK': '1',
        }
    finally:
        stopped = subprocess.run([REPOSITORY / 'tests/helpers/slurm/stop.sh', folder], timeout=60, env={'PATH': path})
        shutil.rmtree(folder)
        assert stopped.returncode == 0


@pytest.fixture(scope='module')
def four_images(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'shapes'
    write_shapes(root, images=4, val=2, size=(96, 64), seed=3)
    return root


def run(slurm, data, *command, timeout=300):
    result = subprocess.run(
        [*map(str, command)],
        cwd=REPOSITORY,
        env={**slurm, 'SHAPES_ROOT': str(data)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    return result.stdout + result.stderr


def wait_for(condition, what, timeout=300):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.1)


def test_requeued_job_ends_as_the_unbroken_one(slurm, four_images, tmp_path):
    """One run by srun from start to end, and one by sbatch that gets Slurm's signal before the time limit."""
    unbroken, work_dir = tmp_path / 'srun', tmp_path / 'sbatch'
    output = run(
        # These ranks make all their imports themselves.
        {**slurm, 'PYTHON': sys.executable},
        four_images,
        *('tools/slurm_train.sh', 'debug', 'mmgrc', SHAPES_CONFIG, unbroken, '--cfg-options', *OPTIONS),
    )
    assert 'Distributed launcher: slurm' in output
    assert f'Epoch(train) [{EPOCHS}][{STEPS}/{STEPS}]' in output

    test = ['tools/slurm_test.sh', 'debug', 'mmgrc', SHAPES_CONFIG, unbroken / f'epoch_{EPOCHS}.pth']
    output = run(slurm, four_images, *test, '--work-dir', tmp_path / 'test', '--cfg-options', *NARROW)
    assert 'Distributed launcher: slurm' in output
    assert 'coco/segm_mAP' in output

    command = ['tools/sbatch_train.sh', 'debug', 'mmgrc', SHAPES_CONFIG, work_dir, '--cfg-options', *OPTIONS]
    job = run(slurm, four_images, *command).split()[-1]
    log = work_dir / f'slurm-{job}.out'

    def said():
        return log.read_text() if log.exists() else ''

    wait_for(lambda: 'Epoch(train) [2][1/2]' in said(), said)
    run(slurm, four_images, 'scancel', '--batch', '--signal=USR1', job)
    wait_for(lambda: 'the job is stopped before its time limit and requeued' in said(), said)
    iteration = torch.load(work_dir / 'stopped.pth')['meta']['iter']
    assert STEPS < iteration < EPOCHS * STEPS
    wait_for(lambda: not run(slurm, four_images, 'squeue', '-h', '-o', '%A'), said)
    assert said().count('Distributed launcher: slurm') == 2
    assert f'resumed epoch: {(iteration - 1) // STEPS}, iter: {iteration}' in said()

    found, wanted = (torch.load(folder / f'epoch_{EPOCHS}.pth') for folder in (work_dir, unbroken))
    assert len(found['exact_resume']['ranks']) == 2
    for key, value in wanted['state_dict'].items():
        assert torch.equal(found['state_dict'][key], value), key
    assert any(key.endswith('grc.cache') and value.any() for key, value in wanted['state_dict'].items())
    for key, state in wanted['optimizer']['state'].items():
        assert all(torch.equal(found['optimizer']['state'][key][name], value) for name, value in state.items())


def test_study_is_an_array_that_goes_on_after_its_time_limit(slurm, four_images, tmp_path):
    """Two runs of two ranks each; one gets the signal before the time limit."""
    table, work_dir = tmp_path / 'table.yml', tmp_path / 'study'
    content = {'config': SHAPES_CONFIG, 'cfg_options': OPTIONS[:-1], 'arms': [{'name': 'both'}], 'seeds': [2, 3]}
    table.write_text(yaml.safe_dump(content))
    study = [sys.executable, 'tools/study.py', table, '--work-dir', work_dir]
    job = run(slurm, four_images, *study, '--slurm', 'debug', '--jobs', 1).split()[-1]
    log = work_dir / 'both' / 'seed_2' / 'train.log'

    def said():
        return ''.join(path.read_text() for path in [*work_dir.glob('*.out'), log] if path.exists())

    wait_for(lambda: 'Epoch(train) [2][1/2]' in said(), said)
    run(slurm, four_images, 'scancel', '--batch', '--signal=USR1', f'{job}_0')
    wait_for(lambda: 'the job is stopped before its time limit and requeued' in said(), said)
    wait_for(lambda: not run(slurm, four_images, 'squeue', '-h', '-o', '%A'), said)
    assert log.read_text().count('Distributed launcher: slurm') == 2
    assert 'resumed epoch: ' in log.read_text()
    output = run(slurm, four_images, *study, '--summary')
    assert '2 of 2 runs are finished' in output
    # Nothing is left to submit.
    assert 'all runs are finished' in run(slurm, four_images, *study, '--slurm', 'debug')


def test_node_lists_are_slurms(slurm, monkeypatch):
    monkeypatch.setenv('SLURM_CONF', slurm['SLURM_CONF'])
    environ = {
        **{'SLURM_PROCID': '3', 'SLURM_NTASKS': '4', 'SLURM_LOCALID': '1'},
        **{'SLURM_NODELIST': 'node[07-09]', 'SLURM_JOB_ID': '5'},
    }
    read_slurm_environment(environ)
    assert environ['MASTER_ADDR'] == 'node07'
