"""The ONNX file in onnxruntime finds what MMDetection's `predict` finds."""

import json
from importlib import util

import onnx
import onnxruntime
import pytest
import torch

from mmgrc.export import export_onnx
from mmgrc.runs.error import InputError
from tests.helpers.detectors import assert_same_detections, build_detector, predict, random_image

BATCHES = {
    'one image': [random_image(96, 128)],
    'one token in the last stage': [random_image(30, 20, 1)],
    'large': [random_image(330, 200, 2)],
    'three sizes': [random_image(70, 150, 3), random_image(96, 64, 4), random_image(80, 60, 5)],
}
# In one process of pytest-xdist: an export takes half a minute.
pytestmark = pytest.mark.xdist_group('export')


@pytest.fixture(scope='module', params=['shapes/mask_rcnn_grc_pvt.py', 'shapes/retinanet_grc_swin.py'])
def exported(request, tmp_path_factory):
    """A detector and its file."""
    model = build_detector(request.param)
    path = tmp_path_factory.mktemp('export') / 'detector.onnx'
    export_onnx(model, path)
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
