"""`tools/infer.py` as a user runs it."""

import json
import re
import shutil
import signal
import subprocess
import time

import cv2
import numpy as np

from tests.conftest import REPOSITORY, SHAPES_CONFIG


def test_detects_and_skips_bad_images(run_tool, trained, shapes, tmp_path):
    shutil.copytree(shapes / 'val', tmp_path / 'images')
    (tmp_path / 'images' / 'broken.jpg').write_text('no image')
    result = run_tool(
        'infer',
        *(tmp_path / 'images', trained / 'mask_rcnn_grc_pvt.py', trained / 'epoch_2.pth'),
        *('--out-dir', tmp_path / 'out', '--score-thr', 0, '--classes', 'circle', 'square'),
    )
    # The rest is processed, and the exit status reports the failure.
    assert result.returncode == 1
    assert '4 images were processed' in result.stdout
    assert 'broken.jpg is not an image' in result.stderr
    assert '1 of 5 images were skipped' in result.stderr
    assert 'Traceback' not in result.stderr
    content = json.loads((tmp_path / 'out' / 'detections.json').read_text())
    assert len(content['images']) == 4
    assert {annotation['category_id'] for annotation in content['annotations']} <= {1, 2}
    assert max(cv2.imread(str(tmp_path / 'out' / 'drawings' / '000001.jpg')).shape) == 800


def infer(trained, images, out):
    """The command line of the tool."""
    return [images, trained / 'mask_rcnn_grc_pvt.py', trained / 'epoch_2.pth', '--out-dir', out, '--device', 'cpu']


def test_interrupted(python, trained, shapes, tmp_path):
    """Ctrl-C, or a batch system's end: what is done is there."""
    (tmp_path / 'images').mkdir()
    for i in range(400):
        (tmp_path / 'images' / f'{i:03}.png').symlink_to(shapes / 'val' / '000001.png')
    command = [python, 'tools/infer.py', *map(str, infer(trained, tmp_path / 'images', tmp_path / 'out'))]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for _ in range(600):
            time.sleep(0.2)
            if len(list((tmp_path / 'out').glob('drawings/*.jpg'))) > 1:
                break
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert 'Traceback' not in errors
    done = int(re.search(r'interrupted: (\d+) of 400 images were processed', errors)[1])
    content = json.loads((tmp_path / 'out' / 'detections.json').read_text())
    assert done <= len(content['images']) <= done + 1
    assert done > 1


def test_all_fail(run_tool, trained, tmp_path):
    (tmp_path / 'images').mkdir()
    for name in ('1.png', '2.png'):
        cv2.imwrite(str(tmp_path / 'images' / name), np.full((1, 3000, 3), 90, np.uint8))
    config = tmp_path / 'resize.py'
    steps = [{'type': 'LoadImageFromFile'}, {'type': 'Resize', 'scale': (96, 64), 'keep_ratio': True}]
    test = {'dataset': {'pipeline': [*steps, {'type': 'PackDetInputs'}]}}
    config.write_text(f'_base_ = {str(trained / "mask_rcnn_grc_pvt.py")!r}\ntest_dataloader = {test!r}\n')
    arguments = infer(trained, tmp_path / 'images', tmp_path / 'out')
    result = run_tool('infer', arguments[0], config, *arguments[2:])
    assert result.returncode == 1
    assert 'all 2 images failed, which may not be their fault. The last error: ' in result.stderr
    assert 'cv2.error: OpenCV' in result.stderr
    assert 'Traceback' not in result.stderr
    assert json.loads((tmp_path / 'out' / 'detections.json').read_text())['images'] == []


def test_bad_input(run_tool, trained, shapes, tmp_path):
    result = run_tool('infer', '/nothing/*.jpg', SHAPES_CONFIG, trained / 'epoch_2.pth', '--out-dir', tmp_path / 'out')
    assert result.returncode == 1
    assert 'no match of a pattern at /nothing/*.jpg' in result.stderr
    assert 'Traceback' not in result.stderr
    assert not (tmp_path / 'out').exists()
