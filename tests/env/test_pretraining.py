"""What pre-training needs, where it is missing or does not fit."""

import subprocess
import sys

import pytest

from mmgrc.env import pretraining
from mmgrc.env.versions import distribution_version
from tests.conftest import REPOSITORY
from tests.helpers.pretraining import needs_mmpretrain


def test_missing_and_old_packages(monkeypatch):
    installed = {'mmpretrain': None}
    monkeypatch.setattr(pretraining, 'installed_version', installed.get)
    assert not pretraining.is_installed()
    with pytest.raises(pretraining.PretrainingError, match=r'not installed\. Type: make env-pretrain'):
        pretraining.check_pretraining()
    installed.update({'mmpretrain': '1.1.0', 'torchvision': '0.28.0+cu130'})
    with pytest.raises(pretraining.PretrainingError) as error:
        pretraining.check_pretraining()
    assert 'mmpretrain 1.1.0 is installed (needed: 1.2.0 or newer, below 2.0). Type: pip install' in str(error.value)
    assert 'model-index is not installed' in str(error.value)
    assert 'torchvision' not in str(error.value)


def test_pins_are_the_tested_versions():
    pins = dict(
        line.split('==')
        for line in (REPOSITORY / 'requirements-pretrain.txt').read_text().splitlines()
        if not line.startswith('#')
    )
    assert {need.package: need.tested for need in pretraining.REQUIREMENTS}.items() <= pins.items()


TORCHVISION = """
import torch
from mmgrc.env.torchvision_ops import provide_torchvision
fits = provide_torchvision()
assert provide_torchvision() == fits
from torchvision.transforms import functional
assert functional.hflip(torch.arange(3.0)[None]).tolist() == [[2, 1, 0]]
from torchvision.ops import nms
try:
    nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    assert fits
except RuntimeError as error:
    assert not fits
    assert 'incompatible' in str(error)
"""


@pytest.mark.slow
@pytest.mark.pretrain
@pytest.mark.skipif(distribution_version('torchvision') is None, reason='torchvision is not installed')
def test_torchvision_of_another_torch_gives_its_transforms_alone():
    subprocess.run([sys.executable, '-c', TORCHVISION], cwd=REPOSITORY, check=True, timeout=200)


@needs_mmpretrain
def test_check_env_names_the_versions():
    from mmgrc.check_env import _pretraining

    (finding,) = _pretraining()
    assert finding.problem is None
    assert finding.found.startswith(f'mmpretrain {distribution_version("mmpretrain")}, torchvision ')


def test_check_env_without_it(monkeypatch):
    from mmgrc.check_env import _pretraining

    monkeypatch.setattr(pretraining, 'installed_version', lambda package: None)
    (finding,) = _pretraining()
    assert finding.problem is None
    assert finding.remedy == 'make env-pretrain'
