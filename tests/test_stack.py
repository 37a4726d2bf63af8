"""The check of the installed stack, and that requirements.txt says the same."""

import re
from pathlib import Path

import pytest
from packaging.version import Version

from mmgrc import stack


def pretend(monkeypatch, versions):
    """Let distributions be of other versions, or not installed where that is None."""
    installed = stack.version

    def version(name):
        found = versions[name] if name in versions else installed(name)
        if found is None:
            raise stack.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(stack, 'version', version)
    # What the import names are of, where no distribution of a known name has them.
    monkeypatch.setattr(stack, 'packages_distributions', lambda: {'mmcv': [n for n in versions if 'other' in n]})


def test_the_tested_stack_passes():
    stack.check_stack()


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
    pretend(monkeypatch, dict.fromkeys(stack._DISTRIBUTIONS.get(package, (package,)), found))
    with pytest.raises(stack.StackError) as error:
        stack.check_stack()
    assert words in str(error.value)


@pytest.mark.parametrize('distribution', ['mmcv', 'mmcv-lite', 'some-other-mmcv'])
def test_any_distribution_with_the_import_name_will_do(monkeypatch, distribution):
    pretend(monkeypatch, {**dict.fromkeys(stack._DISTRIBUTIONS['mmcv']), distribution: '2.1.0'})
    stack.check_stack()
    pretend(monkeypatch, {**dict.fromkeys(stack._DISTRIBUTIONS['mmcv']), distribution: '1.7.0'})
    with pytest.raises(stack.StackError, match=r'mmcv 1\.7\.0 is installed'):
        stack.check_stack()


def test_the_fork_has_versions_of_its_own(monkeypatch):
    fork = {'onedl-mmcv': '2.3.6', 'onedl-mmdetection': '3.5.1', 'onedl-mmengine': '0.10.12'}
    openmmlab = dict.fromkeys(('mmcv', 'mmcv-lite', 'mmdet', 'mmengine'))
    pretend(monkeypatch, {**openmmlab, **fork})
    stack.check_stack()
    pretend(monkeypatch, {**openmmlab, **fork, 'onedl-mmcv': '2.2.0'})
    with pytest.raises(stack.StackError, match=r'mmcv 2\.2\.0 is installed .*onedl-mmcv==2\.3\.6'):
        stack.check_stack()
    # MMDetection 3.3.0 refuses the fork's mmcv.
    pretend(monkeypatch, {**openmmlab, 'mmdet': '3.3.0', 'mmengine': '0.10.7', 'onedl-mmcv': '2.3.6'})
    with pytest.raises(stack.StackError, match=r'mmcv 2\.3\.6 is installed .*mmcv-lite==2\.1\.0'):
        stack.check_stack()


def test_requirements_pin_the_tested_versions():
    root = Path(__file__).parent.parent
    light, full = (
        dict(re.findall(r'^([a-z-]+)==(\S+)', (root / f'requirements{kind}.txt').read_text(), re.M))
        for kind in ('', '-full')
    )
    assert light.pop('mmcv-lite') == full['mmcv']
    for requirement in stack.REQUIREMENTS:
        assert {**light, **full}[requirement.package] == requirement.tested
        tested = Version(requirement.tested)
        assert tested >= Version(requirement.minimum)
        assert requirement.below is None or tested < Version(requirement.below)
    assert f'pip install --no-build-isolation mmcv=={full["mmcv"]}' in stack.COMPILE_MMCV
