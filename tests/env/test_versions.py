"""The check of the installed stack, and that the files of requirements say the same."""

import os
import re
import subprocess

import pytest
import yaml
from packaging.version import Version

from mmgrc.env import versions
from tests.conftest import REPOSITORY

try:
    import tomllib
except ImportError:  # Python 3.10, where pytest needs this package
    import tomli as tomllib


def pretend(monkeypatch, others):
    """Let distributions report other versions than the tested ones. None: not installed."""
    installed = {**{need.package: need.tested for need in versions.REQUIREMENTS}, **others}

    def version(name):
        if installed.get(name) is None:
            raise versions.PackageNotFoundError(name)
        return installed[name]

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
    assert 'pip cache remove onedl-mmcv' in versions.compile_mmcv_command() == versions.rebuild_mmcv_command()
    pretend(monkeypatch, {**openmmlab, **fork, 'onedl-mmcv': '2.2.0'})
    with pytest.raises(versions.StackError, match=r'mmcv 2\.2\.0 is installed .*onedl-mmcv==2\.3\.6'):
        versions.check_stack()
    # MMDetection 3.3.0 refuses the fork's mmcv.
    pretend(monkeypatch, {**openmmlab, 'mmdet': '3.3.0', 'mmengine': '0.10.7', 'onedl-mmcv': '2.3.6'})
    with pytest.raises(versions.StackError, match=r'mmcv 2\.3\.6 is installed .*mmcv-lite==2\.1\.0'):
        versions.check_stack()


def test_requirements_pin_the_tested_versions(monkeypatch):
    pretend(monkeypatch, {})
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
    for command in (versions.compile_mmcv_command(), versions.rebuild_mmcv_command()):
        assert f'pip install --no-build-isolation mmcv=={full["mmcv"]}' in command


def test_each_python_of_the_package_has_a_job():
    project = tomllib.loads((REPOSITORY / 'pyproject.toml').read_text())['project']
    pythons = {line.rpartition(' ')[2] for line in project['classifiers'] if line.startswith('Programming Language')}
    jobs = yaml.safe_load((REPOSITORY / '.github/workflows/ci.yml').read_text())['jobs']
    (setup,) = (step for step in jobs['run']['steps'] if 'setup-python' in step.get('uses', ''))
    others = jobs['pythons']['strategy']['matrix']['python']
    assert pythons == {setup['with']['python-version'], *others}
    assert project['requires-python'] == f'>={min(pythons, key=Version)}'


def test_uv_takes_the_pins_of_the_requirements():
    pins = set((REPOSITORY / 'requirements.txt').read_text().splitlines())
    project = tomllib.loads((REPOSITORY / 'pyproject.toml').read_text())
    constraints = project['tool']['uv']['constraint-dependencies']
    assert {re.split('[=<>]', line)[0].removesuffix('-lite') for line in constraints} == {
        requirement.package for requirement in versions.REQUIREMENTS
    }
    assert set(constraints) <= pins


def test_the_floor_stack_has_the_oldest_versions_that_are_allowed():
    floor = dict(re.findall(r'^([a-z-]+)==(\S+)', (REPOSITORY / 'stacks/floor.txt').read_text(), re.M))
    for requirement in versions.REQUIREMENTS:
        if requirement.package != 'mmcv':  # mmcv-lite of requirements.txt is the oldest
            assert Version(floor[requirement.package]).release[:2] == Version(requirement.minimum).release[:2]
    project = tomllib.loads((REPOSITORY / 'pyproject.toml').read_text())['project']
    for line in [*project['dependencies'], *project['optional-dependencies']['detection']]:
        package, _, least = line.partition('>=')
        if least:
            least = least.split(',')[0]
            assert floor[package].startswith(f'{least}.') or floor[package] == least, line


@pytest.mark.parametrize('stack', sorted((REPOSITORY / 'stacks').glob('*.txt')), ids=lambda path: path.stem)
def test_a_stack_replaces_lines_of_the_requirements(stack):
    (replaced,) = re.findall('^# replaces: (.*)', stack.read_text(), re.M)
    pinned = re.findall(r'^([a-z-]+)[=>]', (REPOSITORY / 'requirements.txt').read_text(), re.M)
    assert set(replaced.split()) <= set(pinned)
    # What is not replaced must not be pinned a second time.
    assert not set(re.findall(r'^([a-z-]+)==', stack.read_text(), re.M)) & (set(pinned) - set(replaced.split()))


def test_a_stack_that_is_not_there_is_refused(tmp_path):
    run = subprocess.run(
        ['bash', REPOSITORY / 'tools/install.sh', tmp_path / 'venv'],
        env={**os.environ, 'STACK': 'newest'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr == 'install: there is no stack newest: allowed are floor fork torch-2.14\n'
    assert not (tmp_path / 'venv').exists()
