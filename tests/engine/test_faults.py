"""Faults around a run, and what the user sees: a full disk, broken images, Ctrl-C."""

import json
import resource
import shutil
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.hooks import Hook

from mmgrc.engine import AtomicCheckpointHook
from mmgrc.engine.atomic_checkpoint_hook import AtomicLocalBackend, CheckpointWriteError
from mmgrc.engine.data_error_hook import DataError
from mmgrc.engine.files import write_atomically
from tests.conftest import NARROW, SHAPES_CONFIG
from tests.helpers.processes import Tool
from tests.helpers.small_runs import small_run, train_with_workers, warnings_of


def train(work_dir, shapes, *options, resume=False, log='train.log', before=None, config=SHAPES_CONFIG):
    return Tool(
        'train',
        *(config, '--work-dir', work_dir, *(['--resume'] if resume else [])),
        *('--cfg-options', *NARROW, 'train_cfg.val_interval=100', *options),
        log=Path(shapes).parent / f'{Path(work_dir).name}-{log}',
        env={'SHAPES_ROOT': str(shapes), 'CUDA_VISIBLE_DEVICES': ''},
        before=before,
    )


@pytest.fixture
def copy(shapes, tmp_path):
    """A copy of the data set, to break."""
    return Path(shutil.copytree(shapes, tmp_path / 'data' / 'shapes'))


@pytest.mark.slow
def test_full_disk_leaves_the_checkpoint_before(copy, tmp_path):
    work_dir = tmp_path / 'run'
    options = ['train_dataloader.dataset.indices=2', 'default_hooks.checkpoint.max_keep_ckpts=1']
    run = train(work_dir, copy, *options, 'train_cfg.max_epochs=1')
    assert run.end() == 0, run.output[-3000:]
    first = work_dir / 'epoch_1.pth'
    content = first.read_bytes()

    def limit():
        # A write beyond the limit fails like one to a full disk, here in the middle of the file.
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) // 2, resource.RLIM_INFINITY))

    run = train(work_dir, copy, *options, 'train_cfg.max_epochs=2', resume=True, log='full.log', before=limit)
    assert run.end() == 1
    assert f'train: {work_dir / "epoch_2.pth"} cannot be written' in run.output
    assert 'Free some space, and continue with --resume.' in run.output
    assert 'Traceback' not in run.output
    assert first.read_bytes() == content
    assert sorted(path.name for path in work_dir.glob('*.p*')) == ['epoch_1.pth', SHAPES_CONFIG.split('/')[-1]]
    assert not list(work_dir.glob('.*'))

    run = train(work_dir, copy, *options, 'train_cfg.max_epochs=2', resume=True, log='again.log')
    assert run.end() == 0, run.output[-3000:]
    assert 'resumed epoch: 1, iter: 1' in run.output
    # The outdated one went after the new one was there.
    assert [path.name for path in work_dir.glob('epoch_*')] == ['epoch_2.pth']
    assert torch.load(work_dir / 'epoch_2.pth')['meta']['epoch'] == 2


def checkpoint_hook(runner):
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, AtomicCheckpointHook)]
    return hook


@pytest.fixture
def full_disk(monkeypatch):
    """Let the disk be full at one of the writes of a file."""

    def fail_for(name, write):
        written = []

        def put(self, content, path):
            written.append(Path(path).name)
            if written.count(name) == write:
                raise CheckpointWriteError(28, 'No space left on device')
            write_atomically(path, content)

        monkeypatch.setattr(AtomicLocalBackend, 'put', put)

    return fail_for


SCORES = [{'acc': 0.5, 'top': 0.5}, {'acc': 0.9, 'top': 0.4}, {'acc': 0.95, 'top': 0.6}]


@pytest.mark.parametrize('save_best', ['acc', ['acc', 'top']])
@pytest.mark.parametrize(
    ('failing', 'left'),
    [
        (None, ['best_acc_epoch_3.pth']),
        (('best_acc_epoch_2.pth', 1), ['best_acc_epoch_1.pth']),
        # MMEngine saves the last checkpoint again, since it names the best one.
        (('epoch_2.pth', 2), ['best_acc_epoch_1.pth', 'best_acc_epoch_2.pth']),
    ],
)
def test_best_checkpoint_is_removed_after_the_next(tmp_path, full_disk, save_best, failing, left):
    runner = small_run(tmp_path, checkpoint={'save_best': save_best}, validations=SCORES, epochs=3)
    if failing:
        full_disk(*failing)
        with pytest.raises(CheckpointWriteError):
            runner.train()
    else:
        runner.train()
    hook = checkpoint_hook(runner)
    found = {'acc': hook.best_ckpt_path} if save_best == 'acc' else hook.best_ckpt_path_dict
    assert sorted(path.name for path in tmp_path.glob('best_acc*')) == left
    assert Path(found['acc']).name == left[0]
    for key, path in found.items():
        torch.load(path)
        assert Path(path).name == f'best_{key}_epoch_{1 if failing else 3}.pth'


@pytest.mark.parametrize('save_best', ['acc', ['acc', 'top']])
def test_validation_without_the_value_is_no_improvement(tmp_path, save_best):
    """MMDetection's COCO metric gives none without detections. Another metric gives its own."""
    validations = [{'other': 1.0}, SCORES[0], {'other': 1.0}]
    runner = small_run(tmp_path, checkpoint={'save_best': save_best}, validations=validations, epochs=3)
    runner.train()
    assert [path.name for path in tmp_path.glob('best_acc*')] == ['best_acc_epoch_2.pth']
    assert warnings_of(tmp_path).count('This counts as no improvement') == 2
    assert 'no values if nothing was detected' in warnings_of(tmp_path)
    hook = checkpoint_hook(runner)
    best = hook.best_ckpt_path if save_best == 'acc' else hook.best_ckpt_path_dict['acc']
    assert Path(best).name == 'best_acc_epoch_2.pth'


SMALLER = """
_base_ = 'mmgrc::shapes/mask_rcnn_grc_pvt.py'
pipeline = [*_base_.train_pipeline[:2], dict(type='Resize', scale_factor=0.2), dict(type='PackDetInputs')]
train_dataloader = dict(dataset=dict(pipeline=pipeline))
"""


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 1])
def test_image_that_fails_in_the_pipeline_is_named(copy, tmp_path, workers):
    """A line of pixels has a valid header, but has no rows left after resizing."""
    image = sorted((copy / 'train').iterdir())[0]
    cv2.imwrite(str(image), np.full((1, 300, 3), 90, np.uint8))

    def change(content):
        entry = next(entry for entry in content['images'] if entry['file_name'] == image.name)
        entry.update(width=300, height=1)
        content['annotations'] = [a for a in content['annotations'] if a['image_id'] != entry['id']]
        box = {'bbox': [1, 0, 200, 1], 'area': 200, 'segmentation': [[1, 0, 201, 0, 201, 1, 1, 1]]}
        content['annotations'].append({**content['annotations'][0], **box, 'id': 9999, 'image_id': entry['id']})

    edit(copy, change)
    config = tmp_path / 'smaller.py'
    config.write_text(SMALLER)
    run = train(tmp_path / 'run', copy, f'train_dataloader.num_workers={workers}', config=config)
    assert run.end() == 1
    (message,) = [line for line in run.output.splitlines() if line.startswith('train: ')]
    assert message.startswith(f'train: the image {image} cannot be used: ')
    assert message.endswith('. Replace the image, or remove it from the data set.')
    assert 'Traceback' not in run.output


BY_ITERATIONS = {'type': 'IterBasedTrainLoop', 'max_iters': 7, 'val_interval': 100}


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('resume', [False, True])
def test_image_of_a_training_by_iterations_is_named(tmp_path, workers, resume):
    """Also in a resumed run, whose loader is created again."""

    def run(**options):
        runner = small_run(
            tmp_path,
            hooks=[{'type': 'ExactResumeHook'}, {'type': 'DataErrorHook'}],
            checkpoint={'by_epoch': False},
            **{'train_dataloader.num_workers': workers, **options},
        )
        train_with_workers(runner)

    if resume:
        run(loop={**BY_ITERATIONS, 'max_iters': 1})
    with pytest.raises(DataError, match=r'the image /images/3.jpg cannot be used: ValueError: broken'):
        run(loop=BY_ITERATIONS, broken=3, resume=resume)


class Recorder(Hook):
    """Records the batches and the random numbers of a run."""

    def __init__(self):
        self.found = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.found.append((torch.cat(data_batch['inputs']).tolist(), torch.rand(1).item(), np.random.random()))


@pytest.mark.parametrize('persistent', [False, True])
@pytest.mark.parametrize('diff_rank_seed', [False, True])
def test_naming_images_changes_neither_data_nor_random_numbers(tmp_path, persistent, diff_rank_seed):
    recorders = []
    for hooks in [], [{'type': 'DataErrorHook'}]:
        recorders.append(Recorder())
        options = {'num_workers': 2, 'persistent_workers': persistent, 'batch_size': 2}
        runner = small_run(
            tmp_path,
            hooks=[*hooks, recorders[-1]],
            checkpoint={'by_epoch': False},
            loop=BY_ITERATIONS,
            randomness={'seed': 3, 'diff_rank_seed': diff_rank_seed},
            train_dataloader=options,
        )
        train_with_workers(runner)
    assert len(recorders[0].found) == 7
    assert recorders[0].found == recorders[1].found


def test_ctrl_c_is_no_traceback(copy, tmp_path):
    run = train(tmp_path / 'run', copy)
    run.wait_for('Epoch(train) [1][2/8]')
    run.send(signal.SIGINT)
    assert run.end() == 130
    assert 'train: interrupted. --resume continues from the last checkpoint.' in run.output
    assert 'Traceback' not in run.output


def edit(root, change, split='train'):
    file = root / 'annotations' / f'instances_{split}.json'
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def break_annotations(content):
    one, two, three, four = content['annotations'][:4]
    one['bbox'] = [10, 10, 0, 12]
    two['bbox'] = [30, 30, -5, 12]
    three['segmentation'] = [[1, 1, 5, 5]]
    four['bbox'] = [500, 10, 5, 5]


def test_annotations_that_are_left_out_are_counted(copy, tmp_path):
    """The run continues without them, and says so before its first step."""
    edit(copy, break_annotations)
    run = train(tmp_path / 'run', copy)
    run.wait_for('Epoch(train) [1][1/8]')
    run.send(signal.SIGKILL)
    run.end()
    start = run.output.index('Epoch(train) [1][1/8]')
    for kind in (
        '1 with an empty box (less than a pixel) (annotation 1)',
        '1 with an inverted box (annotation 2)',
        '1 with no polygon of 3 or more points (annotation 3)',
        '1 with a box outside of its image (annotation 4)',
    ):
        assert 0 < run.output.find(kind) < start
