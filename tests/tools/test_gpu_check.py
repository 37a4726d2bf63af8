"""`tools/gpu_check.sh`: its commands, a step that fails, and a machine without a GPU."""

import os
import shlex
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

STEPS = ['check_env', 'tests', 'demo', 'benchmark']
# It says that it has a GPU, and fails where a word of FAIL is among its arguments.
FAKE_PYTHON = """#!/bin/sh
case "$*" in *"$FAIL"*) exit 3 ;; esac
echo "$*"
"""


def check(*args, **env):
    kept = {name: value for name, value in os.environ.items() if name not in ('VENV', 'WHEELS')}
    return subprocess.run(
        ['tools/gpu_check.sh', *map(str, args)],
        cwd=REPOSITORY,
        env={**kept, 'CUDA_VISIBLE_DEVICES': '', **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def fake_python(tmp_path):
    path = tmp_path / 'python'
    path.write_text(FAKE_PYTHON)
    path.chmod(0o755)
    return path


def test_without_a_gpu_one_line_says_so(tmp_path):
    for args, env in ((['--python', sys.executable], {}), ([], {'VENV': str(tmp_path / 'none')})):
        result = check(tmp_path / 'out', *args, **env)
        assert result.returncode == 1
        assert result.stdout == ''
        (line,) = result.stderr.splitlines()
        assert line.startswith('gpu_check: there is no CUDA GPU')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(('word', 'failed'), [('tests/gpu', ['tests']), ('no such word', [])])
def test_a_failed_step_does_not_stop_the_next_ones(fake_python, tmp_path, word, failed):
    out = tmp_path / 'out'
    result = check(out, '--python', fake_python, FAIL=word)
    assert result.returncode == bool(failed), result.stderr
    lines = (out / 'summary.txt').read_text().splitlines()
    assert [line.split()[0] for line in lines] == STEPS
    assert [line.split()[0] for line in lines if 'exit code   0' not in line] == failed
    assert all('exit code   3' in line for line in lines if line.split()[0] in failed)
    assert result.stdout.endswith('\n'.join([*lines, '']))
    assert 'tools/benchmark.py --config' in (out / 'benchmark.log').read_text()


def test_chosen_steps(fake_python, tmp_path):
    result = check(tmp_path / 'out', 'demo', 'check_env', '--python', fake_python, FAIL='no such word')
    assert result.returncode == 0
    assert [line.split()[0] for line in (tmp_path / 'out' / 'summary.txt').read_text().splitlines()] == [
        'demo',
        'check_env',
    ]
    result = check(tmp_path / 'out', 'tset', '--python', fake_python)
    assert result.returncode == 2
    assert 'step tset: the steps are setup check_env tests demo benchmark' in result.stderr


def test_commands_name_files_that_exist(tmp_path):
    result = check(tmp_path / 'out', '--dry-run')
    commands = [shlex.split(line) for line in result.stdout.splitlines()]
    assert commands[0] == ['make', 'env', 'VENV=.venv']
    words = [word for command in commands for word in command if word.startswith(('tools/', 'configs/', 'tests/'))]
    assert len(words) > 8
    assert [word for word in words if not (REPOSITORY / word).exists()] == []
