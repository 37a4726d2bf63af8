"""A training that was killed, stopped or damaged continues like the uninterrupted one, bit for bit."""

import json
import os
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook

from mmgrc.engine.exact_resume_hook import random_state, set_random_state
from mmgrc.engine.stop_signal_hook import StopSignalHook
from mmgrc.runs.checkpoint import last_good_checkpoint, read_checkpoint
from mmgrc.runs.processes import child_processes
from tests.conftest import NARROW, REPOSITORY, SHAPES_CONFIG
from tests.helpers.processes import Tool

EPOCHS, STEPS = 3, 4  # 8 images, 2 at a time
OPTIONS = [
    *NARROW,
    # Draws random numbers in the model, as RandomFlip does in the data.
    'model.backbone.drop_path_rate=0.2',
    'train_dataloader.dataset.indices=8',
    'val_dataloader.dataset.indices=1',
    'train_cfg.val_interval=1',
]
SEED = 'randomness.seed=5'


def train(work_dir, shapes, *options, resume=False, log='train.log', env=None, epochs=EPOCHS):
    return Tool(
        'train',
        *(SHAPES_CONFIG, '--work-dir', work_dir, *(['--resume'] if resume else [])),
        *('--cfg-options', *OPTIONS, f'train_cfg.max_epochs={epochs}', *options),
        log=work_dir.parent / f'{work_dir.name}-{log}',
        env={'SHAPES_ROOT': str(shapes), 'CUDA_VISIBLE_DEVICES': '', **(env or {})},
    )


def losses(work_dir):
    """Losses by step, of all runs in a work dir. If a step was repeated, the later run's."""
    lines = [line for file in sorted(work_dir.glob('*/vis_data/scalars.json')) for line in file.open()]
    records = [json.loads(line) for line in lines]
    return {r['step']: {k: v for k, v in r.items() if 'loss' in k or k == 'lr'} for r in records if 'loss' in r}


def assert_same_end(work_dir, expected, name=f'epoch_{EPOCHS}.pth', first_step=1):
    """Weights, caches, optimizer and the losses from ``first_step`` on are equal bit for bit."""
    found, wanted = (torch.load(folder / name) for folder in (work_dir, expected))
    assert found['state_dict'].keys() == wanted['state_dict'].keys()
    assert any(key.endswith('grc.cache') and value.any() for key, value in found['state_dict'].items())
    for key, value in wanted['state_dict'].items():
        assert torch.equal(found['state_dict'][key], value), key
    for key, state in wanted['optimizer']['state'].items():
        assert all(torch.equal(found['optimizer']['state'][key][name], value) for name, value in state.items())
    left, right = losses(work_dir), losses(expected)
    assert right
    for step in range(first_step, max(right) + 1):
        assert left[step] == right[step], step


@pytest.fixture(scope='module')
def unbroken(shapes, tmp_path_factory):
    """The work dir of an uninterrupted run."""
    work_dir = tmp_path_factory.mktemp('unbroken') / 'run'
    run = train(work_dir, shapes, SEED)
    assert run.end() == 0, run.output[-3000:]
    return work_dir


def start_again(unbroken, work_dir, *epochs):
    """A work dir in its state after some epochs of the uninterrupted run."""
    work_dir.mkdir()
    for epoch in epochs:
        shutil.copy2(unbroken / f'epoch_{epoch}.pth', work_dir)
    (work_dir / 'last_checkpoint').write_text(str(work_dir / f'epoch_{epochs[-1]}.pth'))
    return work_dir


@pytest.mark.slow
def test_killed_run_ends_as_the_unbroken_one(unbroken, shapes, tmp_path):
    work_dir = tmp_path / 'run'
    # Anywhere in the second and third epoch. The output names the one that fails.
    step = random.SystemRandom().randrange(STEPS, EPOCHS * STEPS - 1)
    print('killed at step', step)
    run = train(work_dir, shapes, SEED)
    run.wait_for(f'Epoch(train) [{step // STEPS + 1}][{step % STEPS + 1}/{STEPS}]')
    run.send(signal.SIGKILL)
    assert run.end() == -signal.SIGKILL
    assert not (work_dir / f'epoch_{EPOCHS}.pth').exists()

    run = train(work_dir, shapes, SEED, resume=True, log='again.log')
    assert run.end() == 0, run.output[-3000:]
    assert 'resumed epoch: ' in run.output
    assert_same_end(work_dir, unbroken)


@pytest.mark.slow
def test_damaged_checkpoint_is_skipped_for_the_last_good_one(unbroken, shapes, tmp_path):
    work_dir = start_again(unbroken, tmp_path / 'run', 1, 2)
    cut = work_dir / 'epoch_2.pth'
    content = cut.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    run = train(work_dir, shapes, SEED, resume=True)
    assert run.end() == 0, run.output[-3000:]
    assert f'--resume: skipped a checkpoint: {cut} cannot be read' in run.output
    assert f'--resume: continuing from {work_dir / "epoch_1.pth"}' in run.output
    assert f'resumed epoch: 1, iter: {STEPS}' in run.output
    assert_same_end(work_dir, unbroken, first_step=STEPS + 1)


@pytest.mark.slow
def test_stop_by_signal_in_mid_epoch(unbroken, shapes, tmp_path):
    work_dir = start_again(unbroken, tmp_path / 'run', 1)
    run = train(work_dir, shapes, SEED, resume=True)
    run.wait_for(f'Epoch(train) [2][1/{STEPS}]')
    run.send(signal.SIGUSR1)
    assert run.end() == 75
    assert 'train: SIGUSR1: stopped after iteration' in run.output
    assert 'Traceback' not in run.output
    stopped = torch.load(work_dir / 'stopped.pth')
    assert stopped['meta']['epoch'] == 1
    assert stopped['meta']['iter'] % STEPS

    run = train(work_dir, shapes, SEED, resume=True, log='again.log')
    assert run.end() == 0, run.output[-3000:]
    done = stopped['meta']['iter'] - STEPS
    assert f'Continuing after batch {done} of {STEPS} of epoch 2' in run.output
    assert_same_end(work_dir, unbroken, first_step=STEPS + 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('change', 'steps', 'words'),
    [
        # One epoch of 4 steps is done. The second epoch has other batches, 3 of which are done at the stop.
        ('train_dataloader.batch_size=1', 8, 'batches: 4, now 8, batch size: 2, now 1'),
        ('train_dataloader.dataset.indices=12', 6, 'batches: 4, now 6, images: 8, now 12'),
    ],
)
def test_epochs_of_another_length(unbroken, shapes, tmp_path, change, steps, words):
    work_dir = start_again(unbroken, tmp_path / 'run', 1)
    run = train(work_dir, shapes, SEED, change, resume=True, epochs=2)
    run.wait_for(f'Epoch(train) [2][3/{steps}]')
    run.send(signal.SIGUSR1)
    assert run.end() == 75
    assert f'The checkpoint was written with other batches ({words}). The run continues' in run.output
    stopped = torch.load(work_dir / 'stopped.pth')
    done = stopped['exact_resume']['batches_done']
    assert 3 <= done == stopped['meta']['iter'] - STEPS < steps

    # Resumed unchanged: the rest of the epoch.
    left = Path(shutil.copytree(work_dir, tmp_path / 'left'))
    (left / 'last_checkpoint').write_text(str(left / 'stopped.pth'))
    run = train(left, shapes, SEED, change, resume=True, epochs=2, log='again.log')
    assert run.end() == 0, run.output[-3000:]
    assert f'Continuing after batch {done} of {steps} of epoch 2' in run.output
    assert torch.load(left / 'epoch_2.pth')['meta']['iter'] == STEPS + steps

    # From the first batch again: a position in the other epoch means nothing.
    run = train(work_dir, shapes, SEED, resume=True, epochs=2, log='again.log')
    assert run.end() == 0, run.output[-3000:]
    assert 'Epoch 2 starts from its first batch.' in run.output
    assert torch.load(work_dir / 'epoch_2.pth')['meta']['iter'] == STEPS + done + STEPS


@pytest.mark.slow
def test_worker_processes_and_a_seed_that_was_drawn(shapes, tmp_path):
    """The default loader, with persistent workers, in a run without a seed in the config."""
    options = ['randomness.seed=None', 'train_dataloader.num_workers=2', 'train_dataloader.persistent_workers=True']
    whole, work_dir = tmp_path / 'whole', tmp_path / 'run'
    run = train(whole, shapes, *options, epochs=2)
    assert run.end() == 0, run.output[-3000:]
    start_again(whole, work_dir, 1)
    run = train(work_dir, shapes, *options, epochs=2, resume=True)
    assert run.end() == 0, run.output[-3000:]
    assert_same_end(work_dir, whole, 'epoch_2.pth', first_step=STEPS + 1)


def test_random_state_survives_a_checkpoint_file(tmp_path):
    random.seed(3)
    np.random.seed(4)
    torch.manual_seed(5)
    # Both generators cache the second of two normal numbers for the next call.
    random.gauss(0, 1)
    np.random.normal()
    torch.save({'state': random_state()}, tmp_path / 'state.pth')

    def draw():
        return random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand(), torch.rand(3).tolist()

    expected = draw()
    draw()
    set_random_state(read_checkpoint(tmp_path / 'state.pth')['state'])
    assert draw() == expected


def write_checkpoint(path, epoch):
    torch.save({'meta': {'epoch': epoch}, 'state_dict': {'w': torch.randn(1000)}}, path)


def test_last_good_checkpoint(tmp_path):
    assert last_good_checkpoint(tmp_path) == (None, [])
    for epoch in (9, 10):
        write_checkpoint(tmp_path / f'epoch_{epoch}.pth', epoch)
    write_checkpoint(tmp_path / 'best_coco_bbox_mAP_epoch_9.pth', 9)
    # Killed before the file was written, or the work dir was moved: use the newest.
    assert last_good_checkpoint(tmp_path) == (tmp_path / 'epoch_10.pth', [])
    (tmp_path / 'last_checkpoint').write_text('/nothing/epoch_10.pth')
    assert last_good_checkpoint(tmp_path) == (tmp_path / 'epoch_10.pth', [])
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_9.pth'))
    assert last_good_checkpoint(tmp_path) == (tmp_path / 'epoch_9.pth', [])

    # One flipped bit in a tensor, which torch.load does not notice.
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_10.pth'))
    content = bytearray((tmp_path / 'epoch_10.pth').read_bytes())
    weights = torch.load(tmp_path / 'epoch_10.pth')['state_dict']['w']
    content[content.index(weights.numpy().tobytes()) + 10] ^= 1
    (tmp_path / 'epoch_10.pth').write_bytes(content)
    assert not torch.equal(torch.load(tmp_path / 'epoch_10.pth')['state_dict']['w'], weights)
    path, skipped = last_good_checkpoint(tmp_path)
    assert path == tmp_path / 'epoch_9.pth'
    assert len(skipped) == 1
    assert 'epoch_10.pth cannot be read: the checksum of' in skipped[0]

    (tmp_path / 'epoch_9.pth').write_bytes(b'')
    assert last_good_checkpoint(tmp_path)[0] is None


def test_unknown_signal_is_named():
    with pytest.raises(ValueError, match="name='USR1' is not a signal"):
        StopSignalHook(name='USR1')
    assert issubclass(StopSignalHook, Hook)


@pytest.fixture
def by_iterations(shapes, tmp_path):
    """Start trainings by iterations, as with the config for small data. Checkpoints are in the middle of a pass."""

    def start(work_dir, *flags, sampler, workers, seed=SEED, log):
        config = tmp_path / 'iterations.py'
        config.write_text(
            f"""
_base_ = {str(REPOSITORY / SHAPES_CONFIG)!r}
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=7, val_interval=3)
train_dataloader = dict(sampler=dict(type={sampler!r}))
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=3, max_keep_ckpts=-1))
log_processor = dict(by_epoch=False)
"""
        )
        options = [
            *(option for option in OPTIONS if not option.startswith('train_cfg')),
            *(seed, f'train_dataloader.num_workers={workers}', f'train_dataloader.persistent_workers={workers > 0}'),
        ]
        arguments = [config, '--work-dir', work_dir, *flags, '--cfg-options', *options]
        return Tool('train', *arguments, log=tmp_path / log, env={'SHAPES_ROOT': str(shapes)})

    return start


@pytest.mark.slow
@pytest.mark.parametrize(('workers', 'seed'), [(0, SEED), (2, 'randomness.seed=None')])
@pytest.mark.parametrize('sampler', ['InfiniteSampler', 'DefaultSampler'])
def test_training_by_iterations(by_iterations, tmp_path, sampler, workers, seed):
    """The checkpoint is in the middle of a pass over the images."""

    def run(work_dir, *flags, log):
        tool = by_iterations(work_dir, *flags, sampler=sampler, workers=workers, seed=seed, log=log)
        assert tool.end() == 0, tool.output[-3000:]

    whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
    run(whole, log='whole.log')
    resumed.mkdir()
    shutil.copy2(whole / 'iter_3.pth', resumed)
    (resumed / 'last_checkpoint').write_text(str(resumed / 'iter_3.pth'))
    run(resumed, '--resume', log='resumed.log')
    assert_same_end(resumed, whole, 'iter_7.pth', first_step=4)


@pytest.mark.slow
def test_stop_signal_reaches_the_loader_workers_too(by_iterations, tmp_path):
    """As from Slurm, or to a process group. A loop by iterations starts its workers before the hook has a handler."""
    run = by_iterations(tmp_path / 'run', sampler='InfiniteSampler', workers=2, log='train.log')
    run.wait_for('Iter(train) [1/7]')
    workers = child_processes(run.process.pid)
    assert len(workers) == 2
    for pid in (*workers, run.process.pid):
        os.kill(pid, signal.SIGUSR1)
    assert run.end() == 75, run.output[-3000:]
    assert 'train: SIGUSR1: stopped after iteration' in run.output
    assert torch.load(tmp_path / 'run/stopped.pth')['meta']['iter'] < 7
