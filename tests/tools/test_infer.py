"""`tools/infer.py` as a user runs it."""

import json
import re
import shutil
import signal
import subprocess
import time

import cv2
import numpy as np
import pytest

from tests.conftest import REPOSITORY, SHAPES_CONFIG
from tests.helpers.videos import read_video, write_video


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


@pytest.fixture(scope='module')
def frames(shapes):
    return [cv2.imread(str(path)) for path in sorted((shapes / 'val').glob('*.png'))]


def test_a_video(run_tool, trained, frames, tmp_path):
    """Frames, their rate and size are kept. A second run, and a truncated video, are one clear error each."""
    write_video(tmp_path / 'whole.avi', frames * 2, 5)
    arguments = infer(trained, tmp_path / 'whole.avi', tmp_path / 'out')
    result = run_tool('infer', *arguments, '--video-suffix', '.mp4', check=True)
    assert f'8 frames were processed: {tmp_path}/out/drawings/whole.mp4, {tmp_path}/out/det' in result.stdout
    drawn, fps = read_video(tmp_path / 'out' / 'drawings' / 'whole.mp4')
    assert len(drawn) == 8
    assert fps == 5
    assert {frame.shape for frame in drawn} == {frames[0].shape}
    content = json.loads((tmp_path / 'out' / 'detections.json').read_text())
    assert [record['frame_id'] for record in content['images']] == list(range(8))

    result = run_tool('infer', *arguments, '--video-suffix', '.mp4')
    assert result.returncode == 1
    assert result.stderr.endswith('whole.mp4 exists already: remove it, or choose another folder with --out-dir\n')

    (tmp_path / 'cut.avi').write_bytes((tmp_path / 'whole.avi').read_bytes()[:-40_000])
    result = run_tool('infer', *infer(trained, tmp_path / 'cut.avi', tmp_path / 'cut'))
    assert result.returncode == 1
    read = int(re.search(r'infer: \S+cut\.avi: reading ended after (\d+) of 8 frames', result.stderr)[1])
    assert f'{read} frames were processed' in result.stdout
    assert len(read_video(tmp_path / 'cut' / 'drawings' / 'cut.avi')[0]) == read > 1
    assert 'Traceback' not in result.stderr


def test_an_interrupted_video(python, trained, frames, tmp_path):
    """Ctrl-C: the drawn video can be played, and has the frames of the detections."""
    write_video(tmp_path / 'in.mp4', frames * 50, 25, 'mp4v')
    command = [python, 'tools/infer.py', *map(str, infer(trained, tmp_path / 'in.mp4', tmp_path / 'out'))]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for _ in range(600):
            time.sleep(0.2)
            if (tmp_path / 'out' / 'drawings' / 'in.mp4').exists():
                break
        time.sleep(3)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert 'Traceback' not in errors
    done = int(re.search(r'interrupted: (\d+) of 200 frames were processed', errors)[1])
    content = json.loads((tmp_path / 'out' / 'detections.json').read_text())
    assert done <= len(content['images']) <= done + 1
    assert abs(len(read_video(tmp_path / 'out' / 'drawings' / 'in.mp4')[0]) - done) <= 1
    assert done > 0


def test_bad_videos(run_tool, trained, frames, tmp_path):
    (tmp_path / 'text.mp4').write_text('no video')
    write_video(tmp_path / 'in.avi', frames, 25)
    shutil.copy(tmp_path / 'in.avi', tmp_path / 'in.wmv')
    for source, message in (
        ('text.mp4', 'text.mp4 is not a video, or is truncated, or of a format that OpenCV does not know'),
        ('in.wmv', '.wmv videos cannot be written: choose with --video-suffix one of .mp4, .m4v, .mov, .mkv, .avi'),
        ('.', 'give each video in a command of its own'),
    ):
        result = run_tool('infer', *infer(trained, tmp_path / source, tmp_path / 'out'))
        assert result.returncode == 1
        assert message in result.stderr
        # One message, and none of OpenCV.
        assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / 'out').exists()
