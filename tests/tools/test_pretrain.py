"""`tools/pretrain.py` and `tools/pretrain_test.py` as a user runs them, and a detector that starts from the result."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from mmengine.config import Config

from mmgrc.datasets import write_shape_classes
from tests.conftest import NARROW, REPOSITORY
from tests.helpers.installed import run_with_packages
from tests.helpers.pretraining import MARKS

CONFIG = 'configs/pretrain/shapes/grc_pvt.py'
DETECTOR = 'configs/pretrain/shapes/mask_rcnn_grc_pvt.py'
SMALL = [
    'model.backbone.embed_dims=8',
    'model.backbone.num_layers=[1,1,1,1]',
    'model.head.in_channels=64',
    *(f'{loader}_dataloader.num_workers=0' for loader in ('train', 'val', 'test')),
    *(f'{loader}_dataloader.persistent_workers=False' for loader in ('train', 'val', 'test')),
    'train_dataloader.batch_size=6',
    'default_hooks.logger.interval=1',
    'default_hooks.grc_monitor.interval=2',
    'randomness.seed=1',
]


@pytest.fixture(scope='module')
def classes(tmp_path_factory):
    """24 training and 6 validation images: 4 steps an epoch."""
    root = tmp_path_factory.mktemp('data') / 'shapes_classes'
    write_shape_classes(root, images=24, val=6, size=(64, 64), seed=3)
    return root


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory, run_tool, classes):
    """The work dir of two epochs."""
    work_dir = tmp_path_factory.mktemp('work') / 'run'
    options = [*SMALL, 'train_cfg.max_epochs=2']
    env = {'SHAPES_CLASSES_ROOT': str(classes)}
    result = run_tool('pretrain', CONFIG, '--work-dir', work_dir, '--cfg-options', *options, env=env)
    assert result.returncode == 0, result.stderr[-3000:]
    return work_dir


def test_without_mmpretrain(tmp_path):
    """One message says what to type."""
    result = run_with_packages(
        [REPOSITORY / 'tools' / 'pretrain.py', 'c.py'],
        tmp_path,
        lambda name: not name.startswith(('mmpretrain', 'torchvision')),
    )
    assert result.returncode == 1
    assert result.stderr.endswith(
        'pretrain: pre-training needs mmpretrain, which is not installed. Type: make env-pretrain (in an environment '
        'of your own: pip install mmpretrain model-index torchvision)\n'
    )
    assert 'Traceback' not in result.stderr


class TestPretraining:
    """What needs mmpretrain."""

    pytestmark = MARKS

    def test_logs_evaluates_and_reports(self, pretrained, run_tool, classes, tmp_path):
        scalars = [json.loads(line) for f in pretrained.glob('*/vis_data/scalars.json') for line in f.open()]
        assert sum('loss' in record for record in scalars) == 8
        assert sum('accuracy/top1' in record for record in scalars) == 2
        assert any(key.startswith('grc_sigma_lambda/backbone.') for record in scalars for key in record)
        state = torch.load(pretrained / 'epoch_2.pth')['state_dict']
        caches = {key: value for key, value in state.items() if key.endswith('grc.cache')}
        assert len(caches) == 4
        assert all(cache.any() for cache in caches.values())

        result = run_tool(
            *('pretrain_test', pretrained / 'grc_pvt.py', pretrained / 'epoch_2.pth', '--work-dir', tmp_path / 'test'),
            *('--out', tmp_path / 'predictions.pkl'),
            env={'SHAPES_CLASSES_ROOT': str(classes)},
        )
        assert result.returncode == 0, result.stderr[-3000:]
        predictions = pickle.loads((tmp_path / 'predictions.pkl').read_bytes())
        right = sum(int(p['pred_label']) == int(p['gt_label']) for p in predictions)
        top1 = float(re.search(r'accuracy/top1: ([\d.]+)', result.stdout + result.stderr)[1])
        assert len(predictions) == 6
        assert top1 == pytest.approx(100 * right / 6, abs=1e-3)

        run_tool('report', pretrained, '--out', tmp_path / 'report.html', check=True)
        page = (tmp_path / 'report.html').read_text()
        assert 'ImageClassifier, GRCPyramidVisionTransformer' in page
        assert 'accuracy/top1' in page
        run_tool('plot_run', pretrained, '--out', tmp_path / 'curves.png', check=True)

    def test_detector_starts_from_the_classifier(self, pretrained, run_tool, shapes, tmp_path, monkeypatch):
        """By init_cfg directly and by way of a converted file, with the same losses and with empty caches."""
        monkeypatch.setenv('SHAPES_ROOT', str(shapes))
        options = [option for option in NARROW if 'num_layers' not in option]
        options += ['model.backbone.num_layers=[1,1,1,1]', 'train_dataloader.dataset.indices=4']
        config = Config.fromfile(REPOSITORY / DETECTOR)
        config.merge_from_dict({'model.backbone.embed_dims': 8, 'model.backbone.num_layers': [1, 1, 1, 1]})
        config.merge_from_dict({'model.neck.in_channels': [8, 16, 40, 64]})
        config.dump(tmp_path / 'detector.py')
        files = [pretrained / 'epoch_2.pth', tmp_path / 'backbone.pth']
        result = run_tool('convert_checkpoint', *files, '--config', tmp_path / 'detector.py', check=True)
        assert '0 missing, 0 new (the memory), 0 of the checkpoint unused, 8 resized (4 position tables, 4 caches)' in (
            result.stdout
        )
        assert 'It has 4 caches. A detector starts with empty ones unless grc.keep_caches=True.' in result.stdout
        losses = []
        for name, file in zip(('direct', 'converted'), files, strict=True):
            result = run_tool(
                *('train', tmp_path / 'detector.py', '--work-dir', tmp_path / name, '--cfg-options', *options),
                *(f'model.backbone.init_cfg.checkpoint={file}', 'model.backbone.init_cfg.type=Pretrained'),
            )
            assert result.returncode == 0, result.stderr[-3000:]
            assert 'Its 4 caches are not taken and start empty' in result.stdout + result.stderr
            scalars = next((tmp_path / name).glob('*/vis_data/scalars.json')).read_text().splitlines()
            losses.append([record['loss'] for record in map(json.loads, scalars) if 'loss' in record])
        assert losses[0] == losses[1]
        assert len(losses[0]) == 2

    @pytest.mark.slow
    def test_killed_run_resumes_and_ends_as_the_unbroken_one(self, python, run_tool, pretrained, classes, tmp_path):
        options = [*SMALL, 'train_cfg.max_epochs=3']
        env = {'SHAPES_CLASSES_ROOT': str(classes), 'CUDA_VISIBLE_DEVICES': ''}
        whole = run_tool('pretrain', CONFIG, '--work-dir', tmp_path / 'whole', '--cfg-options', *options, env=env)
        assert whole.returncode == 0, whole.stderr[-3000:]
        work_dir = tmp_path / 'run'
        args = [CONFIG, '--work-dir', str(work_dir), '--resume', '--cfg-options', *options]
        process = subprocess.Popen(
            [python, 'tools/pretrain.py', *args],
            cwd=REPOSITORY,
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for line in process.stdout:
            if 'Epoch(train) [3][2/4]' in line:
                process.send_signal(signal.SIGKILL)
                break
        assert process.wait(timeout=60) == -signal.SIGKILL
        assert not (work_dir / 'epoch_3.pth').exists()
        time.sleep(1)  # mmengine names its log folder after the second
        result = run_tool('pretrain', *args, env=env)
        assert result.returncode == 0, result.stderr[-3000:]
        assert 'resumed epoch: 2, iter: 8' in result.stdout + result.stderr
        states = [torch.load(folder / 'epoch_3.pth')['state_dict'] for folder in (tmp_path / 'whole', work_dir)]
        for key, value in states[0].items():
            assert torch.equal(value, states[1][key]), key

    @pytest.mark.slow
    def test_two_ranks_on_cpus(self, python, pretrained, classes, tmp_path):
        env = {'SHAPES_CLASSES_ROOT': str(classes), 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'}
        env |= {'PYTHON': sys.executable, 'PYTHON_EXEC': str(python), 'TOOL': 'pretrain'}
        options = [*SMALL, 'train_cfg.max_epochs=1']
        result = subprocess.run(
            ['tools/dist_train.sh', CONFIG, '2', '--work-dir', str(tmp_path / 'run'), '--cfg-options', *options],
            cwd=REPOSITORY,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
        content = torch.load(tmp_path / 'run' / 'epoch_1.pth')
        assert content['meta']['iter'] == 2
        assert len(content['exact_resume']['ranks']) == 2

    @pytest.mark.parametrize(
        ('tool', 'args', 'words'),
        [
            ('pretrain', ['configs/pretrain/grc_pvt.py'], 'IMAGENET_ROOT=/path/to/imagenet python tools/pretrain.py'),
            ('pretrain', ['configs/shapes/mask_rcnn_grc_pvt.py'], 'is for: python tools/train.py'),
            ('train', [CONFIG], 'Type: python tools/pretrain.py'),
            ('test', [CONFIG, 'x.pth'], 'Type: python tools/pretrain_test.py'),
            ('pretrain', [CONFIG, '--amp'], '--amp needs a GPU'),
            ('pretrain', [CONFIG, '--cfg-options', 'train_dataloader.num_workers=0'], 'persistent_workers=True cannot'),
            ('pretrain', [CONFIG, '--cfg-options', 'val_evaluator.topk=[1,5]'], "'val_evaluator.topk=[1]'"),
            ('pretrain', [CONFIG, '--cfg-options', 'default_hooks.logger.type=LogerHook'], 'Did you mean LoggerHook'),
            ('pretrain_test', [CONFIG, '/nothing/epoch_1.pth'], 'there is no checkpoint /nothing/epoch_1.pth'),
            ('pretrain_test', [CONFIG, 'README.md', '--out', 'out.json'], 'name it .pkl'),
            ('pretrain_test', [CONFIG, 'README.md', '--out-item', 'pred'], 'name the file to write with --out'),
        ],
    )
    def test_bad_input_ends_before_any_work(self, run_tool, classes, tmp_path, tool, args, words):
        work_dir = ['--work-dir', tmp_path / 'work']
        place = args.index('--cfg-options') if '--cfg-options' in args else len(args)
        env = {'SHAPES_CLASSES_ROOT': str(classes), 'IMAGENET_ROOT': str(tmp_path / 'imagenet')}
        result = run_tool(tool, *args[:place], *work_dir, *args[place:], env=env)
        assert result.returncode == 1
        assert words in result.stderr.splitlines()[-1]
        assert 'Traceback' not in result.stderr
        assert not (tmp_path / 'work').exists()

    def test_image_that_fails_during_the_run_is_named(self, run_tool, classes, tmp_path):
        config = tmp_path / 'config.py'
        config.write_text(
            f"_base_ = '{REPOSITORY / CONFIG}'\n"
            # It looks for boxes.
            "train_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'),"
            " dict(type='LoadAnnotations'), dict(type='PackInputs')]))\n"
        )
        result = run_tool(
            *('pretrain', config, '--work-dir', tmp_path / 'run', '--cfg-options', *SMALL),
            env={'SHAPES_CLASSES_ROOT': str(classes)},
        )
        assert result.returncode == 1
        assert re.search(rf'pretrain: the image {classes}/train/\w+/\d+\.png cannot be used: ', result.stderr)
