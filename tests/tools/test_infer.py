"""`tools/infer.py` as a user runs it."""

import json
import shutil

import cv2

from tests.conftest import SHAPES_CONFIG


def test_detects_and_skips_bad_images(run_tool, trained, shapes, tmp_path):
    shutil.copytree(shapes / 'val', tmp_path / 'images')
    (tmp_path / 'images' / 'broken.jpg').write_text('no image')
    result = run_tool(
        'infer',
        *(tmp_path / 'images', trained / 'mask_rcnn_grc_pvt.py', trained / 'epoch_2.pth'),
        *('--out-dir', tmp_path / 'out', '--score-thr', 0, '--classes', 'circle', 'square'),
    )
    # The rest is done, and the status says that something was not.
    assert result.returncode == 1
    assert '4 images are done' in result.stdout
    assert 'broken.jpg is no image' in result.stderr
    assert '1 of 5 images were skipped' in result.stderr
    assert 'Traceback' not in result.stderr
    content = json.loads((tmp_path / 'out' / 'detections.json').read_text())
    assert len(content['images']) == 4
    assert {annotation['category_id'] for annotation in content['annotations']} <= {1, 2}
    assert max(cv2.imread(str(tmp_path / 'out' / 'drawings' / '000001.jpg')).shape) == 800


def test_bad_input(run_tool, trained, shapes, tmp_path):
    result = run_tool('infer', '/nothing/*.jpg', SHAPES_CONFIG, trained / 'epoch_2.pth', '--out-dir', tmp_path / 'out')
    assert result.returncode == 1
    assert 'no match of a pattern at /nothing/*.jpg' in result.stderr
    assert 'Traceback' not in result.stderr
    assert not (tmp_path / 'out').exists()
