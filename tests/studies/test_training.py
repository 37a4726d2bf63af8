"""The protection of a run's work dir, and what is measured of a run."""

import fcntl
import json
import os
import re
import resource
import signal
import sys
from time import sleep

import pytest
import torch

from mmgrc.runs.error import InputError
from mmgrc.studies import check_gpus, read_table, run_one, run_study, write_summary
from mmgrc.studies.training import Result, Training, _drop_unvalidated, read_result


@pytest.fixture
def run(write_table, tmp_path):
    return read_table(write_table()).runs(tmp_path / 'out')[0]


@pytest.mark.parametrize(
    ('newest', 'log_is_newer', 'kept'),
    [
        ('epoch_2.pth', True, True),
        ('epoch_2.pth', False, False),
        ('stopped.pth', False, True),
        ('best_coco_bbox_mAP_epoch_1.pth', False, True),
    ],
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
            Training(run, {}, [])
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


@pytest.mark.parametrize(
    ('old', 'new', 'words'),
    [
        ("'segm']", "'segm'], classwise=True", 'val_evaluator.classwise=None, but now it is True'),
        ("['bbox', 'segm']", "'bbox'", r"val_evaluator.metric=\['bbox', 'segm'\], but now it is 'bbox'"),
        ("['bbox', 'segm']", "['segm', 'bbox']", "val_evaluator.metric.0='bbox', but now it is 'segm'"),
        ('backbone=dict(', 'backbone=dict(embed_dims=48, ', 'model.backbone.embed_dims=None, but now it is 48'),
    ],
)
def test_edited_configs(write_table, tmp_path, monkeypatch, old, new, words):
    """A run that is finished, or has a checkpoint to resume from, keeps the config that it was started with."""
    # All trainings fail at once.
    monkeypatch.setenv('PYTHON', 'true')
    table, config, out = write_table(metrics=['coco/bbox_mAP']), tmp_path / 'config.py', tmp_path / 'out'

    def train(text):
        config.write_text(text)
        return run_study(read_table(table), out)

    before = config.read_text()
    after = before.replace(old, new)
    # Without a checkpoint a run starts anew, so the config may be corrected.
    assert train(after) == train(before) == train(f'# A comment\n{before}') == 1
    checkpoint = out / 'both' / 'seed_1' / 'stopped.pth'
    checkpoint.write_text('')
    assert train(before) == 1
    with pytest.raises(InputError, match=f'seed_1 was made with {words}: remove'):
        train(after)
    checkpoint.unlink()
    values = {'coco/bbox_mAP': 0.5}
    result = out / 'plain' / 'seed_0' / 'result.json'
    result.write_text(json.dumps({'status': 'finished', 'final': values, 'best': values}))
    with pytest.raises(InputError, match=f'seed_0 was made with {words}: remove'):
        train(after)
    # The results can still be listed.
    assert write_summary(read_table(table), out)


def test_configs_that_read_variables(write_table, tmp_path, monkeypatch):
    """They are read with the variables of the arm, as its trainings read them."""
    config = tmp_path / 'config.py'
    config.write_text(config.read_text() + "\ndata_root = '{{$DATA_FOLDER:data}}'\n")
    table = write_table(arms=[{'name': 'here'}, {'name': 'there', 'env': {'DATA_FOLDER': 'other'}}], reference='here')
    monkeypatch.setenv('DATA_FOLDER', 'mine')
    assert [arm.content['data_root'] for arm in read_table(table).arms] == ['mine', 'other']
    monkeypatch.delenv('DATA_FOLDER')
    assert [arm.content['data_root'] for arm in read_table(table).arms] == ['data', 'other']


def test_gpus_and_threads_of_the_ranks(write_table, tmp_path, monkeypatch):
    """Each of two runs at once gets three of six GPUs, and a sixth of the cores for each rank."""
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(13)), raising=False)
    monkeypatch.delenv('SLURM_CPUS_PER_TASK', raising=False)
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


@pytest.fixture
def fake_training(tmp_path, monkeypatch):
    """Let trainings be a script that logs given validations, one for each epoch, after it ran given lines."""

    def write(validations, lines=''):
        records = []
        for epoch, validation in enumerate(validations, start=1):
            records += [{'loss': 1.0, 'iter': epoch, 'epoch': epoch, 'step': epoch}]
            records += [{**validation, 'data_time': 0.1, 'time': 0.1, 'step': epoch}]
        python = tmp_path / 'python'
        python.write_text(
            f"""#!{sys.executable}
import json, pathlib, sys
nan = float('nan')
work_dir = pathlib.Path(sys.argv[sys.argv.index('--work-dir') + 1])
{lines}
log = work_dir / '20260101_000000' / 'vis_data' / 'scalars.json'
log.parent.mkdir(parents=True)
log.write_text(chr(10).join(map(json.dumps, {records})))
"""
        )
        python.chmod(0o755)
        monkeypatch.setenv('PYTHON', str(python))

    return write


def result_of(training):
    while (result := training.poll()) is None:
        sleep(0.01)
    return result


def test_peak_memory_is_that_of_the_training(run, fake_training):
    """Its process starts with the peak of this one, as Linux counts it."""
    mebibytes = 1024
    fake_training([{'coco/bbox_mAP': 0.5}], lines=f"held = b'1' * ({mebibytes} * 2**20)")
    result = result_of(Training(run, {}, ['coco/bbox_mAP']))
    assert (result.status, result.final) == ('finished', {'coco/bbox_mAP': 0.5})
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert mebibytes < result.peak_memory < max(mebibytes, own) + 100


@pytest.mark.parametrize(
    ('validations', 'final', 'best', 'message'),
    [
        # MMDetection logs no values if there are no detections at all.
        ([{'coco/bbox_mAP': 0.2}, {}], 0.0, 0.2, 'no detections in its last validation'),
        ([{}, {'coco/bbox_mAP': 0.2}], 0.2, 0.2, ''),
        ([{'coco/bbox_mAP': float('nan')}, {'coco/bbox_mAP': 0.3}, {'coco/bbox_mAP': 0.1}], 0.1, 0.3, ''),
    ],
)
def test_values_of_validations(run, fake_training, validations, final, best, message):
    fake_training(validations)
    result = result_of(Training(run, {}, ['coco/bbox_mAP']))
    assert result.status == 'finished', result.message
    assert (result.final, result.best) == ({'coco/bbox_mAP': final}, {'coco/bbox_mAP': best})
    assert result.message == message


@pytest.mark.parametrize(
    ('validation', 'metric', 'found'),
    [
        ({'coco/bbox_mAP': float('nan')}, 'coco/bbox_mAP', 'coco/bbox_mAP'),
        ({'coco/bbox_mAP': 0.1}, 'coco/segm_mAP', 'coco/bbox_mAP'),
        ({}, 'pascal_voc/mAP', 'nothing'),
    ],
)
def test_without_its_metric_a_run_fails(run, fake_training, validation, metric, found):
    fake_training([validation])
    result = result_of(Training(run, {}, [metric]))
    assert (result.status, result.message) == ('failed', f'its last validation has no {metric}; it has: {found}')


def test_runs_that_another_process_finishes_are_kept(write_table, write_result, tmp_path, fake_training, capsys):
    """While the first run is training, another process finishes the second one."""
    study = read_table(write_table(seeds=[0]))
    first, second = study.runs(tmp_path / 'out')
    write_result(second, 0.5)
    stored = (second.work_dir / 'result.json').rename(tmp_path / 'stored.json')
    fake_training(
        [{'coco/bbox_mAP': 0.4, 'coco/segm_mAP': 0.3}],
        lines=f'pathlib.Path({str(stored)!r}).rename({str(second.work_dir / "result.json")!r})',
    )
    assert run_study(study, tmp_path / 'out') == 0
    assert f'{second}: another process has finished it' in capsys.readouterr().out
    assert (read_result(first, study.metrics).final, read_result(second).final) == (
        {'coco/bbox_mAP': 0.4, 'coco/segm_mAP': 0.3},
        {'coco/bbox_mAP': 0.5, 'coco/segm_mAP': 0.7},
    )
    assert not (second.work_dir / 'train.log').exists()


def test_signal_during_a_start(write_table, tmp_path, monkeypatch):
    """The training that is starting is stopped, and no other one starts."""
    events = []

    class Starting:
        def __init__(self, run, env, metrics):
            self.run, self.seconds = run, 0.0
            events.append('start')
            os.kill(os.getpid(), signal.SIGTERM)

        def stop(self):
            events.append('stop')

        def poll(self, stopping):
            return Result('unfinished') if 'stop' in events else None

        def seconds_left(self):
            return None

    monkeypatch.setattr('mmgrc.studies.run.Training', Starting)
    assert run_study(read_table(write_table()), tmp_path / 'out', jobs=2) == 128 + signal.SIGTERM
    assert events == ['start', 'stop']


@pytest.mark.parametrize(('slurm', 'threads'), [(None, '3'), ('4', '4')])
def test_threads_are_those_of_the_allocation(write_table, tmp_path, monkeypatch, fake_training, slurm, threads):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: {0, 5, 6}, raising=False)
    monkeypatch.delenv('SLURM_CPUS_PER_TASK', raising=False)
    if slurm:
        monkeypatch.setenv('SLURM_CPUS_PER_TASK', slurm)
    fake_training(
        [{'coco/bbox_mAP': 0.4, 'coco/segm_mAP': 0.3}], lines="import os; print(os.environ['OMP_NUM_THREADS'])"
    )
    assert run_one(read_table(write_table()), tmp_path / 'out', 0) == 0
    assert (tmp_path / 'out/plain/seed_0/train.log').read_text().splitlines()[1] == threads


@pytest.mark.parametrize(
    ('visible', 'jobs', 'gpus', 'wanted'),
    [
        (None, 2, [], {'0', '1'}),
        ('2,GPU-7f,5', 2, [], {'2', 'GPU-7f'}),
        # A single job sees what the tool sees.
        ('2,5', 1, [], {'2,5'}),
        (None, 2, ['3'], {'3'}),
    ],
)
def test_jobs_share_the_gpus(write_table, tmp_path, monkeypatch, fake_training, visible, jobs, gpus, wanted):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 3)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if visible:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    fake_training(
        [{'coco/bbox_mAP': 0.4, 'coco/segm_mAP': 0.3}],
        lines="import os, time; print(os.environ['CUDA_VISIBLE_DEVICES']); time.sleep(0.5)",
    )
    assert run_study(read_table(write_table(seeds=[0])), tmp_path / 'out', jobs=jobs, gpus=gpus) == 0
    logs = tmp_path.glob('out/*/seed_0/train.log')
    assert {log.read_text().splitlines()[1] for log in logs} == wanted


@pytest.mark.parametrize(
    ('gpus', 'count', 'words'),
    [
        ('0,', 2, "--gpus 0,: '' is not a GPU: give numbers such as 0,1,2,3"),
        ('a,b', 2, "--gpus a,b: 'a' is not a GPU"),
        ('-1', 2, "--gpus -1: '-1' is not a GPU"),
        ('0,2', 2, '--gpus 0,2: this machine has the GPUs 0 to 1'),
        ('0', 0, '--gpus 0: this machine has no GPU that PyTorch can use'),
    ],
)
def test_wrong_gpus(monkeypatch, gpus, count, words):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: count)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    with pytest.raises(InputError, match=re.escape(words)):
        check_gpus(gpus.split(','))
    check_gpus([])
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 3)
    check_gpus(['0', '2', 'GPU-8f6a-11'])
    # The numbers are those of the machine, of which torch sees only some.
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,5')
    check_gpus(['5'])
