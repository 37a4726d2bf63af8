"""The `Dockerfile` names what is there. It cannot be built without a network."""

import re

import pytest
from packaging.requirements import Requirement

from tests.conftest import REPOSITORY

DOCKERFILE = (REPOSITORY / 'Dockerfile').read_text()


def test_copied_and_run_files_exist():
    copied = [name for line in re.findall(r'^COPY (.+) \./$', DOCKERFILE, re.M) for name in line.split()]
    assert copied == ['requirements.txt', '.']
    (command,) = re.findall(r'^CMD \["python", "([^"]+)"\]$', DOCKERFILE, re.M)
    ignored = (REPOSITORY / '.dockerignore').read_text().split('\n')
    for name in (command, 'requirements.txt', 'configs', 'tools', 'mmgrc', 'pyproject.toml', 'README.md', 'LICENSE'):
        assert (REPOSITORY / name).exists()
        assert name.split('/')[0] not in ignored


def test_what_is_installed_are_the_pins_without_those_of_tests():
    """The commands of the file find torch's pin, and cut `requirements.txt` where the tests' part begins."""
    requirements = (REPOSITORY / 'requirements.txt').read_text()
    (torch,) = re.findall(r"grep '(\S+)' requirements", DOCKERFILE)
    assert len(re.findall(torch, requirements, re.M)) == 1
    (cut,) = re.findall(r"sed '/(.+)/,\$d' requirements", DOCKERFILE)
    runtime, tests = re.split(cut, requirements, flags=re.M)
    names = {Requirement(line).name for line in runtime.splitlines() if line and not line.startswith('#')}
    assert {'torch', 'mmengine', 'mmcv-lite', 'mmdet', 'setuptools', 'rich', 'pycocotools'} <= names
    assert 'pytest==' in tests
    # Python 3.11 or newer.
    tomllib = pytest.importorskip('tomllib')
    extras = tomllib.loads((REPOSITORY / 'pyproject.toml').read_text())['project']['optional-dependencies']
    needed = {Requirement(line).name for line in extras['detection'] + extras['lite']}
    # mmcv and mmdet install these.
    assert needed - names == {'opencv-python', 'scipy', 'pillow', 'pyyaml'}


def test_the_base_has_the_tested_python():
    (version,) = re.findall(r'^ARG BASE=python:(\d+\.\d+)-', DOCKERFILE, re.M)
    assert f'Python {version}' in (REPOSITORY / 'docs' / 'versions.md').read_text()
