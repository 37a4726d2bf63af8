"""The protection of a run's work dir, and what is measured of a run."""

import fcntl
import os
import resource
import sys
from time import sleep

import pytest

from mmgrc.runs.error import InputError
from mmgrc.studies import read_table, run_one, run_study
from mmgrc.studies.training import Training, _drop_unvalidated


@pytest.fixture
def run(write_table, tmp_path):
    return read_table(write_table()).runs(tmp_path / 'out')[0]


@pytest.mark.parametrize(
    ('newest', 'log_is_newer', 'kept'),
    [('epoch_2.pth', True, True), ('epoch_2.pth', False, False), ('stopped.pth', False, True)],
)
def test_checkpoint_without_its_validation(run, newest, log_is_newer, kept):
    log = run.work_dir / '20260101_000000' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    pointer = run.work_dir / 'last_checkpoint'
    for path, time in (
        (run.work_dir / 'epoch_1.pth', 1),
        (run.work_dir / newest, 2),
        (log, 3 if log_is_newer else 1.5),
    ):
        path.write_text('')
        os.utime(path, (time, time))
    pointer.write_text(newest)
    _drop_unvalidated(run)
    assert (run.work_dir / newest).exists() == pointer.exists() == kept
    assert (run.work_dir / 'epoch_1.pth').exists()


def test_run_of_another_process_is_left_alone(run):
    run.work_dir.mkdir(parents=True)
    with (run.work_dir / '.lock').open('w') as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            Training(run, {})
    assert [path.name for path in run.work_dir.iterdir()] == ['.lock']


def test_folder_of_another_table_is_refused(write_table, tmp_path, monkeypatch):
    # A training that ends immediately.
    monkeypatch.setenv('PYTHON', 'true')
    study = read_table(write_table())
    assert run_study(study, tmp_path / 'out') == 1
    assert (tmp_path / 'out' / 'runs.csv').read_text().count('there is no training log') == 4
    changed = read_table(write_table(cfg_options={'train_cfg.max_epochs': 3}))
    with pytest.raises(InputError, match=r"seed_0 was made with cfg_options=.*'train_cfg.max_epochs': '3'.*remove"):
        run_study(changed, tmp_path / 'out')
    with pytest.raises(InputError, match=r'seed_0 was made with gpus_per_run=1, but now it is 2: remove'):
        run_study(study, tmp_path / 'out', ranks=2)


def test_gpus_and_threads_of_the_ranks(write_table, tmp_path, monkeypatch):
    """Each of two runs at once gets three of six GPUs, and a sixth of the cores for each rank."""
    monkeypatch.setattr(os, 'cpu_count', lambda: 13)
    # It stands for torchrun.
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES $OMP_NUM_THREADS $*"\nsleep 1\n')
    python.chmod(0o755)
    monkeypatch.setenv('PYTHON', str(python))
    study = read_table(write_table(seeds=[0]))
    run_study(study, tmp_path / 'out', jobs=2, gpus=['0', '2', '4', '5', '6', '7'], ranks=3)
    logs = [(tmp_path / 'out' / arm / 'seed_0' / 'train.log').read_text().splitlines() for arm in ('plain', 'both')]
    for (command, started), gpus in zip(logs, ('0,2,4', '5,6,7'), strict=True):
        assert 'tools/dist_train.sh' in command
        assert started.startswith(f'{gpus} 2 -m torch.distributed.run --nnodes=1 --nproc_per_node=3 ')


def test_tasks_of_a_slurm_job_are_the_ranks(write_table, tmp_path, monkeypatch):
    monkeypatch.setenv('SLURM_NTASKS', '8')
    with pytest.raises(InputError, match='--gpus-per-run 2: each of the 8 tasks of this Slurm job is a rank'):
        run_one(read_table(write_table()), tmp_path / 'out', 0, ranks=2)


def test_peak_memory_is_that_of_the_training(run, monkeypatch, tmp_path):
    """Its process starts with the peak of this one, as Linux counts it."""
    python, mebibytes = tmp_path / 'python', 1024
    python.write_text(
        f"""#!{sys.executable}
import json, pathlib, sys
held = b'1' * ({mebibytes} * 2**20)
log = pathlib.Path(sys.argv[sys.argv.index('--work-dir') + 1], '20260101_000000', 'vis_data', 'scalars.json')
log.parent.mkdir(parents=True)
records = {{'loss': 1.0, 'iter': 1, 'step': 1}}, {{'coco/bbox_mAP': 0.5, 'step': 1}}
log.write_text(chr(10).join(map(json.dumps, records)))
"""
    )
    python.chmod(0o755)
    monkeypatch.setenv('PYTHON', str(python))
    training = Training(run, {})
    while (result := training.poll(['coco/bbox_mAP'])) is None:
        sleep(0.01)
    assert (result.status, result.final) == ('finished', {'coco/bbox_mAP': 0.5})
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert mebibytes < result.peak_memory < max(mebibytes, own) + 100
