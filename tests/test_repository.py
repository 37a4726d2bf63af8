"""What the repository says of itself agrees with the code."""

import re
import subprocess

import yaml

from mmgrc import __version__
from tests.conftest import REPOSITORY


def read(name):
    return (REPOSITORY / name).read_text()


def test_pre_commit_has_the_pinned_ruff():
    config = yaml.safe_load(read('.pre-commit-config.yaml'))
    (ruff,) = (repo for repo in config['repos'] if 'ruff' in repo['repo'])
    assert f'ruff=={ruff["rev"].removeprefix("v")}\n' in read('requirements.txt')
    assert [hook['id'] for hook in ruff['hooks']] == ['ruff-check', 'ruff-format']


def test_the_workflow_is_ci_run():
    steps = yaml.safe_load(read('.github/workflows/ci.yml'))['jobs']['run']['steps']
    assert [step['run'] for step in steps if 'run' in step] == ['.ci/run']
    commands = read('.ci/run')
    assert 'make coverage' in commands
    assert 'make lint' in commands
    python = next(step['with']['python-version'] for step in steps if 'setup-python' in step.get('uses', ''))
    assert f'Python {python}' in read('README.md')


def test_the_map_of_the_package_is_complete():
    text = read('CONTRIBUTING.md')
    named = set(re.findall(r'`((?:mmgrc|tests|configs|tools)/[^` ]*|[\w.-]+\.(?:toml|txt|md))`', text))
    assert all((REPOSITORY / name).exists() for name in named), named
    tracked = subprocess.run(
        ['git', 'ls-files', '-co', '--exclude-standard', 'mmgrc/*.py'], cwd=REPOSITORY, capture_output=True, text=True
    ).stdout.split()
    small = {'__init__.py', 'version.py', 'config.py', 'mmdet_tools.py'}
    for name in tracked:
        assert name.split('/')[-1] in small or any(name.startswith(known) for known in named), name


def test_versions_agree():
    assert yaml.safe_load(read('CITATION.cff'))['version'] == __version__
    assert f'## {__version__}' in read('CHANGELOG.md')


def test_issue_forms_ask_for_check_env():
    for name in ('bug', 'feature'):
        form = yaml.safe_load(read(f'.github/ISSUE_TEMPLATE/{name}.yml'))
        assert {'name', 'description', 'body'} <= set(form)
        ids = [field['id'] for field in form['body']]
        assert len(ids) == len(set(ids))
    assert 'python -m mmgrc.check_env' in read('.github/ISSUE_TEMPLATE/bug.yml')


def test_the_licence_is_in_full():
    text = read('LICENSE')
    for words in ('Version 2.0, January 2004', '9. Accepting Warranty', 'END OF TERMS AND CONDITIONS', 'APPENDIX'):
        assert words in text
