"""The check of the installed stack, and that requirements.txt says the same."""

import re

import pytest
from packaging.version import Version

from mmgrc.env import versions
from tests.conftest import REPOSITORY


def test_the_tested_stack_passes():
    versions.check_stack()


@pytest.mark.parametrize(
    ('package', 'found', 'words'),
    [
        ('mmcv', '2.2.0', 'mmcv 2.2.0 is installed (needed: 2.0.0 or newer, below 2.2.0). Type: pip install'),
        ('setuptools', '82.0', 'setuptools 82.0 is installed'),
        ('mmdet', '2.28.0', 'pip install mmdet==3.3.0'),
        ('mmcv', None, 'mmcv is not installed'),
    ],
)
def test_a_wrong_version_is_named_with_its_remedy(monkeypatch, package, found, words):
    installed = versions.version

    def version(name):
        if name != package:
            return installed(name)
        if found is None:
            raise versions.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(versions, 'version', version)
    with pytest.raises(versions.StackError) as error:
        versions.check_stack()
    assert words in str(error.value)


def test_requirements_pin_the_tested_versions():
    text = (REPOSITORY / 'requirements.txt').read_text()
    pins = dict(re.findall(r'^([a-z]+)==(\S+)', text, re.M))
    for requirement in versions.REQUIREMENTS:
        assert pins[requirement.package] == requirement.tested
        tested = Version(requirement.tested)
        assert tested >= Version(requirement.minimum)
        assert requirement.below is None or tested < Version(requirement.below)
