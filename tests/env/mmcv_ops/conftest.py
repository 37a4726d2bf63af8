"""The tested ops: mmgrc's own, with torchvision's kernels if they load. Also mmcv's compiled ops, for comparison."""

import importlib

import pytest

from mmgrc.env.mmcv_ops import extension, ops_in_use


@pytest.fixture(params=['own', 'torchvision'] if extension.torchvision_works() else ['own'])
def ops(request, monkeypatch):
    """Replace mmcv's compiled ops by ours, which mmcv's own Python code then calls."""
    monkeypatch.setattr(extension, 'use_torchvision', lambda device: request.param == 'torchvision')
    for module in extension.PROVIDED:
        # Imported by name, since mmcv.ops has functions with the same names as their modules.
        monkeypatch.setattr(importlib.import_module(f'mmcv.ops.{module}'), 'ext_module', extension)
    return extension


@pytest.fixture(scope='session')
def compiled():
    """mmcv's compiled ops."""
    if ops_in_use() != 'compiled':
        pytest.skip('mmcv has no compiled ops here to compare with: make env-full')
    return importlib.import_module('mmcv._ext')
