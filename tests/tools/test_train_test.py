"""`tools/train.py` and `tools/test.py` as a user runs them, on the shapes config with few images."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import cv2
import pytest
import torch

from tests.conftest import FAST, NARROW, REPOSITORY, SHAPES_CONFIG


def test_training_logs_and_saves(trained):
    scalars = [json.loads(line) for f in trained.glob('*/vis_data/scalars.json') for line in f.open()]
    assert sum('loss_mask' in record for record in scalars) == 16
    assert sum('coco/segm_mAP' in record for record in scalars) == 1
    caches = {
        key: value
        for key, value in torch.load(trained / 'epoch_2.pth')['state_dict'].items()
        if key.endswith('grc.cache')
    }
    assert len(caches) == 8
    assert all(cache.any() for cache in caches.values())


def test_evaluates_dumps_and_draws(run_tool, trained, tmp_path):
    result = run_tool(
        'test',
        trained / 'mask_rcnn_grc_pvt.py',  # the dumped config loads
        trained / 'epoch_2.pth',
        *('--work-dir', tmp_path / 'work', '--out', tmp_path / 'out.pkl', '--show-dir', 'shown'),
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert 'coco/bbox_mAP' in result.stdout + result.stderr
    predictions = pickle.loads((tmp_path / 'out.pkl').read_bytes())
    assert len(predictions) == 4
    assert len(list((tmp_path / 'work').rglob('shown/*.png'))) == 4

    picture = tmp_path / 'picture.png'
    run_tool('draw_predictions', SHAPES_CONFIG, tmp_path / 'out.pkl', '--out', picture, '--count', 3, check=True)
    assert min(cv2.imread(str(picture)).shape[:2]) > 200
    run_tool('plot_run', trained, '--out', tmp_path / 'curves.png', check=True)
    assert min(cv2.imread(str(tmp_path / 'curves.png')).shape[:2]) > 200


def test_hooks_can_be_turned_off(run_tool, tmp_path):
    """Ours and MMEngine's, in a config and as an option."""
    config = tmp_path / 'quiet.py'
    config.write_text(f"_base_ = '{REPOSITORY / SHAPES_CONFIG}'\ndefault_hooks = dict(grc_monitor=None, timer=None)\n")
    options = [*NARROW, 'default_hooks.progress=None', 'train_cfg.max_epochs=1']
    run_tool('train', config, '--work-dir', tmp_path / 'run', '--cfg-options', *options, check=True)
    scalars = [json.loads(line) for f in tmp_path.glob('run/*/vis_data/scalars.json') for line in f.open()]
    assert scalars
    assert not any(key.startswith('grc') for record in scalars for key in record)
    (log,) = tmp_path.glob('run/*/*.log')
    hooks = log.read_text().split('Hooks will be executed')[1]
    assert 'GRCMonitorHook' not in hooks
    assert 'ProgressHook' not in hooks
    assert 'IterTimerHook' not in hooks
    assert 'AtomicCheckpointHook' in hooks
    result = run_tool('test', tmp_path / 'run/quiet.py', tmp_path / 'run/epoch_1.pth', '--work-dir', tmp_path / 'test')
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.slow
def test_test_time_augmentation_of_boxes(run_tool, trained, tmp_path):
    """MMDetection merges only boxes, so the detector is tested without its masks."""
    options = ['test_evaluator.metric=bbox', 'model.roi_head.mask_head=None', 'model.roi_head.mask_roi_extractor=None']
    checkpoint = torch.load(trained / 'epoch_2.pth')
    state = {key: value for key, value in checkpoint['state_dict'].items() if 'mask_head' not in key}
    torch.save({'state_dict': state}, tmp_path / 'boxes.pth')
    result = run_tool(
        'test',
        *(SHAPES_CONFIG, tmp_path / 'boxes.pth', '--tta', '--work-dir', tmp_path / 'work', '--cfg-options'),
        *(*FAST, *options),
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert 'coco/bbox_mAP' in result.stdout + result.stderr


@pytest.mark.slow
def test_killed_run_resumes(python, run_tool, trained, shapes, tmp_path):
    """A run killed in its third epoch goes on after its second, and ends as the unbroken one would."""
    work_dir = tmp_path / 'run'
    shutil.copytree(trained, work_dir)
    args = [SHAPES_CONFIG, '--work-dir', str(work_dir), '--resume', '--cfg-options', *FAST, 'train_cfg.max_epochs=3']
    process = subprocess.Popen(
        [python, 'tools/train.py', *args],
        cwd=REPOSITORY,
        env={**os.environ, 'SHAPES_ROOT': str(shapes), 'CUDA_VISIBLE_DEVICES': ''},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if 'Epoch(train) [3][2/8]' in line:
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert not (work_dir / 'epoch_3.pth').exists()
    time.sleep(1)  # mmengine names its log folder after the second

    result = run_tool('train', *args)
    assert result.returncode == 0, result.stderr[-2000:]
    output = result.stdout + result.stderr
    assert 'resumed epoch: 2, iter: 16' in output
    assert re.search(r'Epoch\(train\) \[3\]\[1/8\]', output)
    assert 'Epoch(train) [2]' not in output
    assert torch.load(work_dir / 'epoch_3.pth')['meta']['iter'] == 24


@pytest.mark.slow
def test_first_start_with_resume_loads_the_initial_weights(run_tool, trained, tmp_path):
    """Batch jobs and studies are always started with --resume. MMDetection's tool then ignores load_from."""
    weights = Path(shutil.copy(trained / 'epoch_2.pth', tmp_path / 'weights.pth'))
    wanted = torch.load(weights)['state_dict']
    # No weight changes, so that the checkpoints show where the training started.
    options = [*FAST, f'load_from={weights}', 'optim_wrapper.optimizer.lr=0', 'train_dataloader.dataset.indices=4']
    for epochs, start in ((1, f'yet, the training starts anew from the weights {weights}'), (2, 'resumed epoch: 1')):
        args = [SHAPES_CONFIG, '--work-dir', tmp_path / 'run', '--resume', '--cfg-options', *options]
        result = run_tool('train', *args, f'train_cfg.max_epochs={epochs}')
        assert result.returncode == 0, result.stderr[-2000:]
        assert start in result.stdout + result.stderr
        found = torch.load(tmp_path / 'run' / f'epoch_{epochs}.pth')['state_dict']
        assert all(torch.equal(found[key], wanted[key]) for key in wanted if not key.endswith('grc.cache'))
        # The resumed training does not need them.
        weights.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ('tool', 'args', 'words'),
    [
        ('train', ['configs/mask_rcnn_grc_pvd.py'], 'Did you mean one of these? configs/mask_rcnn_grc_pvt.py'),
        ('train', ['mmgrc::nothing.py'], 'It has: mmgrc::baselines/mask_rcnn_pvt.py'),
        ('train', ['configs/mask_rcnn_grc_pvt.py'], 'COCO_ROOT=/path/to/coco'),
        (
            'train',
            [SHAPES_CONFIG, '--cfg-options', 'train_dataloader.dataset.data_root=/nothing/shapes'],
            'Write it with: python tools/make_shapes.py /nothing/shapes',
        ),
        (
            'train',
            [SHAPES_CONFIG, '--cfg-options', 'model.backbone.init_cfg.checkpoint=http://localhost:9/pvt_tiny.pth'],
            'cannot be downloaded',
        ),
        (
            'train',
            [SHAPES_CONFIG, '--cfg-options', 'model.backbone.init_cfg.checkpoint=/nothing/pvt_tiny.pth'],
            'train without: --cfg-options model.backbone.init_cfg=None',
        ),
        ('train', [SHAPES_CONFIG, '--resume', '/nothing/epoch_1.pth'], 'there is no checkpoint /nothing/epoch_1.pth'),
        ('train', [SHAPES_CONFIG, '--cfg-options', 'model.backbone.grc.cache_ratio=0.3'], 'grc.cache_ratio=0.3'),
        ('train', [SHAPES_CONFIG, '--amp'], '--amp needs a GPU'),
        ('test', [SHAPES_CONFIG, '/nothing/epoch_1.pth'], 'there is no checkpoint'),
        ('test', [SHAPES_CONFIG, 'README.md'], 'README.md cannot be read as weights'),
        ('test', [SHAPES_CONFIG, 'README.md', '--out', 'out.json'], 'name it .pkl'),
    ],
)
def test_bad_input_ends_before_any_work(run_tool, tmp_path, tool, args, words):
    work_dir = tmp_path / 'work'
    env = {'COCO_ROOT': str(tmp_path / 'coco'), 'TORCH_HOME': str(tmp_path)}
    result = run_tool(tool, *args[:1], *args[1:], *_with_work_dir(args, work_dir), env=env)
    assert result.returncode == 1
    assert words in result.stderr
    assert 'Traceback' not in result.stderr
    assert not work_dir.exists()


def _with_work_dir(args, work_dir):
    # --cfg-options takes all arguments after it.
    return [f'work_dir={work_dir}'] if '--cfg-options' in args else ['--work-dir', work_dir]


def test_checkpoint_of_another_model(run_tool, trained, tmp_path):
    plain = [*FAST, 'model.backbone.grc.stages=()']
    result = run_tool('test', SHAPES_CONFIG, trained / 'epoch_2.pth', '--work-dir', tmp_path, '--cfg-options', *plain)
    assert result.returncode == 1
    assert 'is a checkpoint of another model' in result.stderr
    assert 'are not in the model (backbone.layers.0.1.1.attn.grc.lam, ' in result.stderr

    checkpoint = torch.load(trained / 'epoch_2.pth')
    checkpoint['state_dict'] = {k: v for k, v in checkpoint['state_dict'].items() if '.grc.' not in k}
    torch.save(checkpoint, tmp_path / 'stock.pth')
    result = run_tool('test', SHAPES_CONFIG, tmp_path / 'stock.pth', '--work-dir', tmp_path, '--cfg-options', *FAST)
    assert result.returncode == 1
    assert 'are missing in it (backbone.layers.0.1.1.attn.grc.lam, ' in result.stderr


def test_options_are_mmdetections(run_tool):
    for tool, options in (
        (
            'train',
            ['--amp', '--auto-scale-lr', '--resume', '--cfg-options', '--launcher', '--local_rank', '--local-rank'],
        ),
        ('test', ['--out', '--show', '--show-dir', '--wait-time', '--tta', '--launcher', '--cfg-options']),
    ):
        text = run_tool(tool, '--help', check=True).stdout
        assert all(option in text for option in options)
