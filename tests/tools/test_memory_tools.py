"""`tools/plot_lambda.py` and `tools/visualize_memory.py` as a user runs them."""

import cv2
import numpy as np


def test_plot_lambda(run_tool, trained, tmp_path):
    out, names = tmp_path / 'lambda.png', ('--names', '$1_$5', '交')
    result = run_tool('plot_lambda', trained / 'epoch_1.pth', trained / 'epoch_2.pth', *names, '--out', out, check=True)
    assert 'is written' in result.stdout
    height, width = cv2.imread(str(out)).shape[:2]
    assert width > 1.5 * height > 300

    result = run_tool('plot_lambda', trained / 'epoch_1.pth', 'README.md')
    assert result.returncode == 1
    assert 'README.md cannot be read as weights' in result.stderr
    assert 'Traceback' not in result.stderr


def test_visualize_memory(run_tool, trained, shapes, tmp_path):
    image, out = shapes / 'val' / '000002.png', tmp_path / 'memory.png'
    config, checkpoint = trained / 'mask_rcnn_grc_pvt.py', trained / 'epoch_2.pth'
    run_tool('visualize_memory', config, checkpoint, image, '--layers', '0.0', '3.1', '--out', out, check=True)
    assert min(cv2.imread(str(out)).shape[:2]) > 200

    result = run_tool('visualize_memory', config, checkpoint, image, '--layers', '7.0')
    assert result.returncode == 1
    assert 'there is no layer 7.0; the model has 0.0, 0.1, 1.0' in result.stderr
    assert 'Traceback' not in result.stderr

    # Resize gives a line a height of 0 pixels.
    cv2.imwrite(str(tmp_path / 'line.png'), np.full((1, 3000, 3), 90, np.uint8))
    pipeline = [{'type': 'LoadImageFromFile'}, {'type': 'Resize', 'scale': (96, 64), 'keep_ratio': True}]
    test = {'dataset': {'pipeline': [*pipeline, {'type': 'PackDetInputs'}]}}
    (tmp_path / 'resize.py').write_text(f'_base_ = {str(config)!r}\ntest_dataloader = {test!r}\n')
    result = run_tool('visualize_memory', tmp_path / 'resize.py', checkpoint, tmp_path / 'line.png')
    assert result.returncode == 1
    assert 'line.png: cv2.error: ' in result.stderr
    assert 'Traceback' not in result.stderr
