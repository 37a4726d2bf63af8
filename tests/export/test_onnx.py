"""The ONNX file in onnxruntime, and in the script of `docs/export.md`, finds what MMDetection finds."""

import ast
import json
import re
import subprocess
import sys
from importlib import util

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mmdet.apis import inference_detector

from mmgrc.export import export_onnx
from mmgrc.runs.error import InputError
from tests.conftest import REPOSITORY
from tests.helpers.detectors import assert_same_detections, build_detector, predict, random_image

BATCHES = {
    'one image': [random_image(96, 128)],
    'one token in the last stage': [random_image(30, 20, 1)],
    'large': [random_image(330, 200, 2)],
    'three sizes': [random_image(70, 150, 3), random_image(96, 64, 4), random_image(80, 60, 5)],
}
# Neither may be imported.
WITHOUT_TORCH = "import sys; sys.modules.update(torch=None, mmdet=None, mmgrc=None); exec(open('detect.py').read())"
# In one process of pytest-xdist: an export takes half a minute.
pytestmark = pytest.mark.xdist_group('export')


@pytest.fixture(scope='module', params=['shapes/mask_rcnn_grc_pvt.py', 'shapes/retinanet_grc_swin.py'])
def exported(request, tmp_path_factory, run_tool):
    """A detector, and its file from `tools/export_onnx.py`."""
    model = build_detector(request.param)
    folder = tmp_path_factory.mktemp('export')
    config, checkpoint, path = (folder / name for name in ('config.py', 'detector.pth', 'new/detector.onnx'))
    model.cfg.dump(config)
    torch.save({'meta': {'dataset_meta': model.dataset_meta}, 'state_dict': model.state_dict()}, checkpoint)
    result = run_tool('export_onnx', config, checkpoint, '--out', path, timeout=550)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(f'{path}: {type(model).__name__} with 3 classes\n')
    assert [file.name for file in path.parent.iterdir()] == ['detector.onnx']
    return model, path


def run(path, images, sizes):
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    names = [out.name for out in session.get_outputs()]
    return dict(zip(names, session.run(None, {'images': images, 'sizes': sizes}), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize('images', BATCHES.values(), ids=BATCHES)
def test_finds_what_mmdetection_finds(exported, images):
    model, path = exported
    expected, batch, sizes = predict(model, images)
    found = run(path, batch, sizes)
    assert list(found) == ['boxes', 'scores', 'labels', 'image', *(['masks'] if hasattr(model, 'roi_head') else [])]
    assert all(len(instances) > 20 for instances, _ in expected)
    assert_same_detections(found, expected, share=0.97)


@pytest.mark.slow
def test_an_image_without_pixels_has_nothing(exported):
    """A place of a batch can stay empty. Then there are no proposals either."""
    model, path = exported
    _, batch, sizes = predict(model, BATCHES['three sizes'])
    sizes[1] = 0
    assert 1 not in run(path, batch, sizes)['image']
    found = run(path, batch, sizes * 0)
    assert found['boxes'].shape == (0, 4)
    assert len(found['scores']) == len(found['labels']) == len(found['image']) == len(found.get('masks', ())) == 0


@pytest.mark.slow
def test_only_operators_of_the_standard(exported):
    model, path = exported
    content = onnx.load(path)
    onnx.checker.check_model(content)
    assert [entry.domain for entry in content.opset_import] == ['']
    assert not content.functions
    kinds = {node.op_type for node in content.graph.node}
    assert 'NonMaxSuppression' in kinds
    assert ('RoiAlign' in kinds) == hasattr(model, 'roi_head')
    meta = {entry.key: entry.value for entry in content.metadata_props}
    assert json.loads(meta['classes']) == ['circle', 'square', 'triangle']
    assert json.loads(meta['test_pipeline']) == [{'type': 'Resize', 'scale_factor': 1.0}]
    assert meta['pad_divisor'] == '32'
    assert meta.get('mask_thr') == ('0.5' if hasattr(model, 'roi_head') else None)


@pytest.mark.slow
def test_the_script_of_the_page(exported, tmp_path):
    model, path = exported
    image = tmp_path / 'image.png'
    cv2.imwrite(str(image), random_image(96, 128))
    expected = inference_detector(model, str(image)).pred_instances.numpy()
    # Between two scores, and so that some detections are above it.
    threshold = float(expected.scores[2:4].mean())
    page = (REPOSITORY / 'docs' / 'export.md').read_text()
    (script,) = re.findall(r'`detect\.py`:\s+```python\n(.*?)```', page, re.S)
    assert '> 0.3' in script
    (tmp_path / 'detect.py').write_text(script.replace('> 0.3', f'> {threshold}'))
    command = [sys.executable, '-c', WITHOUT_TORCH, str(path), str(image)]
    lines = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.splitlines()

    pixels = cv2.imread(str(image))
    for line, i in zip(lines, range(3), strict=True):
        name, score, box = line.split(' ', 2)
        assert name == model.dataset_meta['classes'][expected.labels[i]]
        assert float(score) == pytest.approx(expected.scores[i], abs=0.01)
        np.testing.assert_allclose(ast.literal_eval(box), expected.bboxes[i], atol=0.02)
        if 'masks' in expected:
            pixels[expected.masks[i]] //= 2
    drawn = cv2.imread(str(tmp_path / 'detected.png'))
    # Rounding may decide about a pixel at the threshold of a mask.
    assert (drawn != pixels).any(axis=2).mean() < 1e-3
    assert (drawn != cv2.imread(str(image))).any() == ('masks' in expected)


def test_missing_library(monkeypatch, tmp_path):
    find = util.find_spec
    monkeypatch.setattr('mmgrc.export.onnx.find_spec', lambda name: None if name == 'onnxscript' else find(name))
    with pytest.raises(InputError, match=r'needs onnxscript\. Type: pip install onnx onnxscript'):
        export_onnx(torch.nn.Identity(), tmp_path / 'detector.onnx')


def test_no_test_pipeline(tmp_path):
    model = build_detector('shapes/retinanet_grc_swin.py')
    model.cfg.pop('test_dataloader')
    with pytest.raises(InputError, match=r'no test_dataloader\.dataset\.pipeline'):
        export_onnx(model, tmp_path / 'detector.onnx')


@pytest.mark.slow
def test_backbone_that_cannot_be_traced(tmp_path):
    """Stock Swin computes with NumPy what depends on the size."""
    options = {
        'model.backbone': {'_delete_': True, 'type': 'SwinTransformer', 'embed_dims': 8, 'out_indices': [1, 2, 3]}
    }
    model = build_detector('shapes/retinanet_grc_swin.py', options)
    with pytest.raises(InputError, match=r'cannot trace .* a SwinTransformer\. .* GRC and grc=dict\(stages=\(\)\)'):
        export_onnx(model, tmp_path / 'detector.onnx')
    assert not list(tmp_path.iterdir())
