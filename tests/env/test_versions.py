"""The check of the installed stack, and that the files of requirements say the same."""

import re

import pytest
from packaging.version import Version

from mmgrc.env import versions
from tests.conftest import REPOSITORY


def pretend(monkeypatch, others):
    """Let distributions report other versions. None: not installed."""
    installed = versions.version

    def version(name):
        found = others[name] if name in others else installed(name)
        if found is None:
            raise versions.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(versions, 'version', version)
    # The distributions of import names that no distribution of a known name has.
    monkeypatch.setattr(versions, 'packages_distributions', lambda: {'mmcv': [n for n in others if 'other' in n]})


def test_the_tested_stack_passes():
    versions.check_stack()


@pytest.mark.parametrize(
    ('package', 'found', 'words'),
    [
        ('mmcv', '2.2.0', 'mmcv 2.2.0 is installed (needed: 2.1.0 or newer, below 2.2.0). Type: pip install'),
        ('setuptools', '82.0', 'setuptools 82.0 is installed'),
        ('mmdet', '2.28.0', 'pip install mmdet==3.3.0'),
        ('mmcv', None, 'mmcv is not installed'),
    ],
)
def test_a_wrong_version_is_named_with_its_remedy(monkeypatch, package, found, words):
    pretend(monkeypatch, dict.fromkeys(versions._DISTRIBUTIONS.get(package, (package,)), found))
    with pytest.raises(versions.StackError) as error:
        versions.check_stack()
    assert words in str(error.value)


@pytest.mark.parametrize('distribution', ['mmcv', 'mmcv-lite', 'some-other-mmcv'])
def test_any_distribution_with_the_import_name_will_do(monkeypatch, distribution):
    pretend(monkeypatch, {**dict.fromkeys(versions._DISTRIBUTIONS['mmcv']), distribution: '2.1.0'})
    versions.check_stack()
    pretend(monkeypatch, {**dict.fromkeys(versions._DISTRIBUTIONS['mmcv']), distribution: '1.7.0'})
    with pytest.raises(versions.StackError, match=r'mmcv 1\.7\.0 is installed'):
        versions.check_stack()


def test_the_fork_has_versions_of_its_own(monkeypatch):
    fork = {'onedl-mmcv': '2.3.6', 'onedl-mmdetection': '3.5.1', 'onedl-mmengine': '0.10.12'}
    openmmlab = dict.fromkeys(('mmcv', 'mmcv-lite', 'mmdet', 'mmengine'))
    pretend(monkeypatch, {**openmmlab, **fork})
    versions.check_stack()
    pretend(monkeypatch, {**openmmlab, **fork, 'onedl-mmcv': '2.2.0'})
    with pytest.raises(versions.StackError, match=r'mmcv 2\.2\.0 is installed .*onedl-mmcv==2\.3\.6'):
        versions.check_stack()
    # MMDetection 3.3.0 refuses the fork's mmcv.
    pretend(monkeypatch, {**openmmlab, 'mmdet': '3.3.0', 'mmengine': '0.10.7', 'onedl-mmcv': '2.3.6'})
    with pytest.raises(versions.StackError, match=r'mmcv 2\.3\.6 is installed .*mmcv-lite==2\.1\.0'):
        versions.check_stack()


def test_requirements_pin_the_tested_versions():
    light, full = (
        dict(re.findall(r'^([a-z-]+)==(\S+)', (REPOSITORY / f'requirements{kind}.txt').read_text(), re.M))
        for kind in ('', '-full')
    )
    assert light.pop('mmcv-lite') == full['mmcv']
    for requirement in versions.REQUIREMENTS:
        assert {**light, **full}[requirement.package] == requirement.tested
        tested = Version(requirement.tested)
        assert tested >= Version(requirement.minimum)
        assert requirement.below is None or tested < Version(requirement.below)
    assert f'pip install --no-build-isolation mmcv=={full["mmcv"]}' in versions.COMPILE_MMCV
