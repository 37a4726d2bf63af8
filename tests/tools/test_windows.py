"""The tools with a Python that lacks what Windows' lacks. No test ran on Windows itself."""

import os
import subprocess

import pytest

from tests.conftest import FAST, REPOSITORY, SHAPES_CONFIG

# Other packages have their own ways on Windows. They are imported by now.
LIKE_WINDOWS = """
import enum, os, platform, runpy, signal, sys
platform.system = lambda: 'Windows'
for name in ('fcntl', 'grp', 'pwd', 'resource', 'termios'):
    sys.modules[name] = None
for name in ('fork', 'getuid', 'killpg', 'register_at_fork', 'sched_getaffinity', 'statvfs', 'uname', 'wait4'):
    delattr(os, name)
for name in ('SIGHUP', 'SIGKILL', 'SIGUSR1', 'SIGUSR2'):
    delattr(signal, name)
# Its names are those of an enumeration.
signal.SIGBREAK = signal.SIGQUIT
signal.Signals = enum.IntEnum('Signals', {name: getattr(signal, name) for name in ('SIGBREAK', 'SIGINT', 'SIGTERM')})
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.fixture(scope='session')
def run_like_windows(python, shapes):
    def run(name, *args):
        command = [python, '-c', LIKE_WINDOWS, f'tools/{name}.py', *map(str, args)]
        return subprocess.run(
            command,
            cwd=REPOSITORY,
            env={**os.environ, 'SHAPES_ROOT': str(shapes), 'CUDA_VISIBLE_DEVICES': ''},
            timeout=300,
            capture_output=True,
            text=True,
        )

    return run


@pytest.mark.slow
def test_trains_and_tests(run_like_windows, tmp_path):
    options = ['--cfg-options', *FAST, 'train_cfg.max_epochs=1', 'train_dataloader.dataset.indices=4']
    result = run_like_windows('train', SHAPES_CONFIG, '--work-dir', tmp_path / 'run', *options)
    assert result.returncode == 0, result.stderr[-2000:]
    result = run_like_windows(
        'test', SHAPES_CONFIG, tmp_path / 'run/epoch_1.pth', '--work-dir', tmp_path / 'test', *options
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert 'coco/segm_mAP' in result.stdout + result.stderr


@pytest.mark.slow
def test_a_study_needs_another_system(run_like_windows):
    result = run_like_windows('study', 'studies/shapes_memory_pvt.yml')
    assert result.returncode == 1
    assert result.stderr.strip() == (
        'study: it locks and stops its trainings as only Linux and macOS can. On Windows, use WSL'
    )
