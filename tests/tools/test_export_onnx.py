"""`tools/export_onnx.py` as a user runs it, and the script of `docs/export.md` with its file."""

import ast
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
from mmdet.apis import inference_detector
from mmengine.config import Config

from mmgrc.inference import load_detector
from tests.conftest import REPOSITORY

# Neither may be imported.
WITHOUT_TORCH = "import sys; sys.modules.update(torch=None, mmdet=None, mmgrc=None); exec(open('detect.py').read())"


@pytest.mark.slow
def test_the_script_of_the_page_finds_what_mmdetection_finds(run_tool, trained, shapes, tmp_path):
    config, checkpoint = trained / 'mask_rcnn_grc_pvt.py', trained / 'epoch_2.pth'
    result = run_tool('export_onnx', config, checkpoint, '--out', tmp_path / 'detector.onnx', timeout=550)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(f'{tmp_path}/detector.onnx: MaskRCNN with 3 classes\n')
    assert [path.name for path in tmp_path.iterdir()] == ['detector.onnx']

    model = load_detector(Config.fromfile(config), str(checkpoint), 'cpu')
    image = shapes / 'val' / '000001.png'
    expected = inference_detector(model, str(image)).pred_instances.numpy()
    # Between two scores, and so that some detections are above it.
    threshold = float(expected.scores[2:4].mean())
    page = (REPOSITORY / 'docs' / 'export.md').read_text()
    (script,) = re.findall(r'`detect\.py`:\s+```python\n(.*?)```', page, re.S)
    assert '> 0.3' in script
    (tmp_path / 'detect.py').write_text(script.replace('> 0.3', f'> {threshold}'))
    command = [sys.executable, '-c', WITHOUT_TORCH, 'detector.onnx', str(image)]
    lines = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.splitlines()

    pixels = cv2.imread(str(image))
    for line, i in zip(lines, range(3), strict=True):
        name, score, box = line.split(' ', 2)
        assert name == model.dataset_meta['classes'][expected.labels[i]]
        assert float(score) == pytest.approx(expected.scores[i], abs=0.01)
        np.testing.assert_allclose(ast.literal_eval(box), expected.bboxes[i], atol=0.02)
        pixels[expected.masks[i]] //= 2
    drawn = cv2.imread(str(tmp_path / 'detected.png'))
    # Rounding may decide about a pixel at the threshold of a mask.
    assert (drawn != pixels).any(axis=2).mean() < 1e-3
    assert (drawn != cv2.imread(str(image))).any()


def test_bad_input(run_tool, trained, tmp_path):
    good = trained / 'mask_rcnn_grc_pvt.py', trained / 'epoch_2.pth'
    for arguments, message in (
        (('configs/more/dino_grc_swin.py', good[1]), 'model is a DINO, which cannot be exported'),
        ((good[0], tmp_path / 'none.pth'), f'there is no checkpoint {tmp_path}/none.pth'),
        (('configs/nothing.py', good[1]), 'there is no config configs/nothing.py'),
        ((*good, '--out', tmp_path), f'{tmp_path} is a folder'),
        ((*good, '--out', good[1] / 'detector.onnx'), f'there can be no folder {good[1]}'),
        ((*good, '--cfg-options', 'model.test_cfg.rcnn.nms.type=soft_nms'), "the export supports type='nms'"),
    ):
        out = () if '--out' in arguments else ('--out', tmp_path / 'detector.onnx')
        result = run_tool('export_onnx', *arguments, *out)
        assert result.returncode == 1
        error = result.stderr.splitlines()[-1]
        assert error.startswith('export_onnx: ')
        assert message in error
        assert 'Traceback' not in result.stderr
    assert not list(tmp_path.iterdir())
