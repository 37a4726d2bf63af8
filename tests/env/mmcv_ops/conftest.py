"""Who does the work: mmgrc's own operations, torchvision's kernels where they load; and mmcv's compiled ones beside."""

import importlib

import pytest

from mmgrc.env.mmcv_ops import extension, ops_in_use


@pytest.fixture(params=['own', 'torchvision'] if extension.torchvision_works() else ['own'])
def ops(request, monkeypatch):
    """The functions that take the place of mmcv's compiled ones, and are called by mmcv's own Python code."""
    monkeypatch.setattr(extension, 'use_torchvision', lambda device: request.param == 'torchvision')
    for module in extension.PROVIDED:
        # By its name: mmcv.ops has functions that are called as their modules.
        monkeypatch.setattr(importlib.import_module(f'mmcv.ops.{module}'), 'ext_module', extension)
    return extension


@pytest.fixture(scope='session')
def compiled():
    """mmcv's compiled ops."""
    if ops_in_use() != 'compiled':
        pytest.skip('mmcv has no compiled ops here, with which ours are compared: make env-full')
    return importlib.import_module('mmcv._ext')
