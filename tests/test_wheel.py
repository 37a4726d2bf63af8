"""The wheel works without the clone."""

import os
import shutil
import subprocess
import sys

import pytest

from dev.model_index import read_models
from tests.conftest import REPOSITORY


@pytest.mark.slow
def test_wheel_works_on_its_own(tmp_path, trained, shapes):
    """Build it, install it to an empty folder, and use it outside the clone: check_env, a config by name, inference."""
    command = [
        sys.executable,
        '-m',
        'pip',
        'wheel',
        '--no-deps',
        '--no-build-isolation',
        '-q',
        '-w',
        str(tmp_path),
        '.',
    ]
    source = tmp_path / 'source'  # setuptools leaves a build/ behind
    for name in ('mmgrc', 'configs', 'dev', 'tools'):
        shutil.copytree(REPOSITORY / name, source / name, symlinks=True)
    for name in ('pyproject.toml', 'README.md', 'LICENSE', 'model-index.yml'):
        shutil.copy(REPOSITORY / name, source)
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=200)
    (wheel,) = tmp_path.glob('mmgrc-*.whl')
    target = tmp_path / 'site'
    command = [sys.executable, '-m', 'pip', 'install', '--no-deps', '-q', '--target', str(target), str(wheel)]
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    environment = {**os.environ, 'PYTHONPATH': str(target), 'CUDA_VISIBLE_DEVICES': ''}

    def run(*args):
        result = subprocess.run(
            [sys.executable, *map(str, args)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert result.returncode == 0, result.stderr[-2000:] + result.stdout[-2000:]
        return result.stdout

    code = (
        'import mmgrc; from mmengine.config import Config; print(mmgrc.__file__);'
        "print(Config.fromfile('mmgrc::mask_rcnn_grc_pvt.py').model.backbone.type)"
    )
    assert run('-c', code).split() == [str(target / 'mmgrc' / '__init__.py'), 'GRCPyramidVisionTransformer']
    assert 'All is well' in run('-m', 'mmgrc.check_env')
    infer = target / 'mmgrc' / '.mim' / 'tools' / 'infer.py'
    arguments = (trained / 'mask_rcnn_grc_pvt.py', trained / 'epoch_2.pth', '--out-dir', tmp_path / 'out')
    assert '1 images were processed' in run(infer, shapes / 'val' / '000001.png', *arguments)
    assert (target / 'mmgrc' / 'py.typed').is_file()
    # Scripts for developers are not in the wheel.
    assert not (target / 'dev').exists()
    # Where mim looks for models.
    assert read_models(target / 'mmgrc' / '.mim') == read_models(REPOSITORY)
    assert (target / 'mmgrc' / '.mim' / 'tools' / 'train.py').is_file()
