"""The repository's statements about itself agree with the code."""

import ast
import re
import subprocess
import sys

import pytest
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
    assert "make test PYTEST='--cov" in commands
    assert 'make lint' in commands
    python = next(step['with']['python-version'] for step in steps if 'setup-python' in step.get('uses', ''))
    assert f'Python {python}' in read('README.md')


def test_the_map_of_the_package_is_complete():
    text = read('CONTRIBUTING.md').split('## To change X, open Y')[1]
    named = set(re.findall(r'`((?:mmgrc|dev|tests|configs|tools)/[^` ]*|[\w.-]+\.(?:toml|txt|md))`', text))
    assert [name for name in named if not (REPOSITORY / name).exists()] == []
    command = ['git', 'ls-files', '-co', '--exclude-standard', 'mmgrc/*.py', 'dev/*.py']
    tracked = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True).stdout.split()
    small = {'__init__.py', 'version.py'}
    for name in tracked:
        assert name.split('/')[-1] in small or any(name.startswith(known) for known in named), name


def rooms():
    """The first table of CONTRIBUTING: each room of the package with those that it may import, in the table's order."""
    table = read('CONTRIBUTING.md').split('## Rooms')[1].split('##')[0]
    rows = re.findall(r'^\| `mmgrc/(\w+)/` \|[^|]*\|([^|]*)\|$', table, re.M)
    return {room: set(re.findall(r'`(\w+)`', allowed)) for room, allowed in rows}


def imported(path):
    """Top-level packages that a file imports, and rooms below ``mmgrc``, such as ``'mmgrc.runs'``, in functions too."""
    package = path.relative_to(REPOSITORY).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            module = '.'.join([*above, *([node.module] if node.module else [])])
            names = [f'{module}.{alias.name}' for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == 'importlib.import_module':
            names = [node.args[0].value] if isinstance(node.args[0], ast.Constant) else []
        else:
            continue
        found.update('.'.join(name.split('.')[: 2 if name.startswith('mmgrc.') else 1]) for name in names)
    return found


def test_the_table_of_rooms_is_complete_and_has_no_cycle():
    table = rooms()
    assert table.keys() == {path.parent.name for path in REPOSITORY.glob('mmgrc/*/__init__.py')}
    above = set()
    for room, allowed in table.items():
        assert allowed <= above, f'{room} may import a room that stands below it in the table'
        above.add(room)


@pytest.mark.parametrize('room', rooms())
def test_a_room_imports_what_the_table_allows(room):
    allowed = {f'mmgrc.{name}' for name in (*rooms()[room], room, 'version')}
    for path in sorted((REPOSITORY / 'mmgrc' / room).rglob('*.py')):
        ours = {name for name in imported(path) if name.split('.')[0] in ('mmgrc', 'tools', 'dev', 'tests')}
        assert ours <= allowed, path


def test_commands_import_the_package_alone():
    for folder, also in (('tools', set()), ('dev', {'dev'})):
        for path in REPOSITORY.glob(f'{folder}/*.py'):
            assert not imported(path) & ({'tools', 'dev', 'tests'} - also), path
    # Modules below the root are imported by their room.
    assert {path.name for path in REPOSITORY.glob('mmgrc/*.py')} == {'__init__.py', 'check_env.py', 'version.py'}


def test_tests_of_a_group_run_in_one_process(tmp_path):
    """Some groups share a service, and others what takes long to make."""
    (tmp_path / 'test_group.py').write_text("""
import os, pathlib, pytest

@pytest.mark.xdist_group('one')
@pytest.mark.parametrize('number', range(6))
def test_process(number):
    pathlib.Path(f'{number}.pid').write_text(str(os.getpid()))
""")
    options = '-p', 'no:cacheprovider', '-c', REPOSITORY / 'pyproject.toml', '--rootdir', tmp_path, '-n', '2'
    subprocess.run([sys.executable, '-m', 'pytest', *options, 'test_group.py'], cwd=tmp_path, check=True)
    assert len({path.read_text() for path in tmp_path.glob('*.pid')}) == 1
    assert len(list(tmp_path.glob('*.pid'))) == 6


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
