"""The other replacements of mmcv's compiled ops, when they are used, and the errors for missing ops."""

import importlib
import sys

import pytest
import torch
from mmcv.ops import DeformConv2dPack, SigmoidFocalLoss, sigmoid_focal_loss
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction
from mmengine.config import Config
from torch.autograd import gradcheck

import mmgrc.env.mmcv_ops
from mmgrc.env.mmcv_ops import extension, missing_ops, ops_in_use
from mmgrc.runs.config import build_model
from mmgrc.runs.error import InputError
from tests.conftest import SHAPES_CONFIG


def test_torchvisions_kernels():
    if not extension.torchvision_works():
        pytest.skip('torchvision is not installed, or does not work with this torch: its kernels are not tested')
    assert extension.use_torchvision(torch.device('cuda'))
    assert not extension.use_torchvision(torch.device('cpu'))


def test_torchvision_that_does_not_load(monkeypatch):
    extension.torchvision_works.cache_clear()
    monkeypatch.setitem(sys.modules, 'torchvision', None)
    assert not extension.torchvision_works()
    extension.torchvision_works.cache_clear()


def test_focal_loss(ops):
    """As in its paper, with labels past the last class as background."""
    torch.manual_seed(0)
    logits = (torch.randn(6, 4, dtype=torch.float64) * 3).requires_grad_()
    target = torch.tensor([0, 3, 4, 1, 4, 2])
    loss = sigmoid_focal_loss(logits, target, 2.0, 0.25, None, 'none')
    for n, c in ((n, c) for n in range(6) for c in range(4)):
        p = logits[n, c].sigmoid()
        expected = -0.25 * (1 - p) ** 2 * p.log() if target[n] == c else -0.75 * p**2 * (1 - p).log()
        torch.testing.assert_close(loss[n, c], expected)
    assert gradcheck(lambda x: sigmoid_focal_loss(x, target, 2.0, 0.25, None, 'sum'), [logits])
    with pytest.raises(extension.MissingOpError, match='weights of the classes'):
        SigmoidFocalLoss(2.0, 0.25, torch.ones(4))(logits, target)


def test_deformable_attention(ops):
    """The function that mmcv calls on a GPU, compared with the values at the centres of cells."""
    torch.manual_seed(0)
    shapes = torch.tensor([[3, 4], [2, 2]])
    value = torch.randn(2, 16, 2, 3, dtype=torch.float64)
    row, column = torch.tensor([1, 0]), torch.tensor([2, 1])
    places = torch.stack(((column + 0.5) / shapes[:, 1], (row + 0.5) / shapes[:, 0]), -1).double()
    weights = torch.rand(2, 5, 2, 2, 1, dtype=torch.float64)
    apply = MultiScaleDeformableAttnFunction.apply
    output = apply(value, shapes, None, places.view(1, 1, 1, 2, 1, 2).expand(2, 5, 2, 2, 1, 2), weights, 64)
    cells = value[:, [1 * 4 + 2, 12 + 0 * 2 + 1]]
    torch.testing.assert_close(output, torch.einsum('blhd,bqhl->bqhd', cells, weights[..., 0]).flatten(2))

    places = torch.rand(2, 5, 2, 2, 3, 2, dtype=torch.float64).requires_grad_()
    weights = torch.rand(2, 5, 2, 2, 3, dtype=torch.float64).requires_grad_()
    assert gradcheck(lambda v, p, w: apply(v, shapes, None, p, w, 64), [value.requires_grad_(), places, weights])


def test_an_op_that_is_not_there_is_named(ops):
    with pytest.raises(
        extension.MissingOpError, match=r'roi_pool_forward is not available.*make env-full.*mmcv==2\.1\.0'
    ):
        extension.roi_pool_forward(1, 2, c=3)
    with pytest.raises(AttributeError):
        extension.__path__  # noqa: B018


def test_a_model_that_needs_a_missing_op(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv._ext', extension)
    monkeypatch.setattr(importlib.import_module('mmcv.ops.deform_conv'), 'ext_module', extension)
    assert ops_in_use() == 'pytorch'
    config = Config.fromfile(SHAPES_CONFIG)
    assert not list(missing_ops(build_model(config)))
    config.model.backbone = {
        'type': 'mmdet.ResNet',
        'depth': 50,
        'dcn': {'type': 'DCN'},
        'stage_with_dcn': (False, False, False, True),
    }
    config.model.neck.in_channels = [256, 512, 1024, 2048]
    message = r'model\.backbone\.layer4\.0\.conv2 is a DeformConv2dPack\. .*make env-full'
    with pytest.raises(InputError, match=message):
        build_model(config)
    with pytest.raises(extension.MissingOpError, match='deform_conv_forward'):
        DeformConv2dPack(2, 2, 3)(torch.zeros(1, 2, 5, 5))


def test_compiled_ops_come_first(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv._ext', 'compiled')
    mmgrc.env.mmcv_ops.provide_ops()
    assert sys.modules['mmcv._ext'] == 'compiled'
    assert ops_in_use() == 'compiled'
