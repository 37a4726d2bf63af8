"""`torch.export` and ONNX: the caches are constants of the graph, and onnxruntime's outputs equal PyTorch's."""

import re

import onnxruntime
import pytest
import torch
from mmdet.models.necks import FPN
from torch import nn
from torch.export import Dim

from tests.conftest import REPOSITORY
from tests.helpers.backbones import CHANNELS, FAMILIES, TWO_STAGES, assert_same, build

family = pytest.mark.parametrize('family', FAMILIES)
# Detectors pad to multiples of 32.
DYNAMIC = {0: Dim('batch', min=1, max=64), 2: 32 * Dim('rows', min=1, max=64), 3: 32 * Dim('cols', min=1, max=64)}


def trained(family, **options):
    """A backbone in evaluation mode whose caches are filled."""
    backbone = build(family, **options)
    backbone(torch.randn(2, 3, 64, 64))
    return backbone.eval()


def padded(*size):
    """Images with padding at the bottom and right, as in a batch."""
    images = torch.randn(*size)
    images[0, :, -9:] = 0
    images[-1, :, :, -18:] = 0
    return images


@pytest.mark.slow
@pytest.mark.parametrize(('family', 'variant'), [('pvt', 'code'), ('pvtv2', 'paper'), ('swin', 'code')])
def test_export_at_a_fixed_size(family, variant):
    options = TWO_STAGES['swin'] if family == 'swin' else {}
    backbone = trained(family, grc={'variant': variant}, **options)
    x = padded(2, 3, 64, 96)
    program = torch.export.export(backbone, (x,))
    assert_same(program.module()(x), backbone(x), 1e-4)
    assert sum(name.endswith('grc.cache') for name, _ in program.named_buffers()) == len(backbone.grc_layers())
    assert not program.graph_signature.buffers_to_mutate


class Neck(nn.Module):
    """A backbone with its FPN."""

    def __init__(self, backbone, channels):
        super().__init__()
        self.backbone = backbone
        self.neck = FPN(in_channels=channels, out_channels=8, num_outs=len(channels) + 1)

    def forward(self, x):
        return self.neck(self.backbone(x))


def assert_onnx_equals(program, model, path, sizes):
    torch.onnx.export(program, f=path, dynamo=True, verbose=False)
    assert_same_in_onnxruntime(path, model, sizes)


@torch.no_grad()
def assert_same_in_onnxruntime(path, model, sizes):
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    assert [node.name for node in session.get_inputs()] == ['x']  # the caches are constants
    for size in sizes:
        x = padded(*size)
        outs = [torch.from_numpy(out) for out in session.run(None, {'x': x.numpy()})]
        assert_same(outs, model(x), 1e-4)


# With gradients enabled, PyTorch traces another kernel for Swin's attention than the one it lowers to ONNX.


@pytest.mark.slow
@family
@torch.no_grad()
def test_onnx_of_the_backbone_at_a_fixed_size(family, tmp_path):
    backbone = trained(family, **TWO_STAGES[family])
    program = torch.export.export(backbone, (padded(2, 3, 64, 96),))
    assert_onnx_equals(program, backbone, tmp_path / 'model.onnx', [(2, 3, 64, 96)])


@pytest.mark.slow
@family
@torch.no_grad()
def test_export_and_onnx_with_the_neck_at_any_size(family, tmp_path):
    model = Neck(trained(family, **TWO_STAGES[family]), CHANNELS[family][:2]).eval()
    program = torch.export.export(model, (padded(2, 3, 96, 128),), dynamic_shapes=(DYNAMIC,))
    sizes = [(1, 3, 64, 64), (3, 3, 128, 96), (2, 3, 256, 320)]
    for size in sizes[1:]:
        x = padded(*size)
        assert_same(program.module()(x), model(x), 1e-4)
    assert_onnx_equals(program, model, tmp_path / 'model.onnx', sizes)


@pytest.mark.slow
def test_as_the_page_says(tmp_path, monkeypatch):
    page = (REPOSITORY / 'docs' / 'export.md').read_text().split('## A backbone')[1]
    (code,) = re.findall(r'```python\n(.*?)```', page, re.S)
    backbone = trained('pvt', **TWO_STAGES['pvt'])
    monkeypatch.chdir(tmp_path)
    exec(code, {'torch': torch, 'backbone': backbone, 'images': padded(2, 3, 64, 96)})
    assert_same_in_onnxruntime('backbone.onnx', backbone, [(3, 3, 128, 96)])
