"""`check_env` in a working environment, and in environments that are really broken."""

import shutil
from pathlib import Path

import pytest

from mmgrc import check_env
from mmgrc.env.versions import rebuild_mmcv_command
from tests.helpers.installed import SITE, run_with_packages


@pytest.fixture
def broken(tmp_path):
    """Run check_env with all installed packages except some."""

    def run(without=(), **options):
        keep = lambda name: not name.startswith(tuple(without))  # noqa: E731
        return run_with_packages(['-m', 'mmgrc.check_env'], tmp_path, keep, **options)

    return run


def rename(site, old, version):
    """Let a package report another version."""
    # mmcv, mmcv_lite or onedl_mmcv.
    entry = next(site.glob(f'*{old}*-*.dist-info'))
    metadata = (entry / 'METADATA').read_text()
    entry.unlink()
    new = site / f'{entry.name.split("-")[0]}-{version}.dist-info'
    new.mkdir()
    head = [f'Version: {version}' if line.startswith('Version:') else line for line in metadata.splitlines()]
    (new / 'METADATA').write_text('\n'.join(head))


def test_all_is_well(run_tool):
    result = run_tool('check_env')
    assert result.returncode == 0, result.stdout
    assert 'All is well' in result.stdout
    for name in ('GRCSwinTransformer', 'Mask R-CNN with GRC-PVT on cpu', 'mmcv ops on cpu'):
        assert name in result.stdout


def test_missing_packages_are_reported(broken):
    result = broken(without=('mmcv', 'mmdet', 'onedl_mmcv', 'onedl_mmdet'))
    assert result.returncode == 1, result.stderr
    assert 'Traceback' not in result.stderr
    assert 'mmcv is not installed' in result.stdout
    assert 'pip install mmcv-lite==2.1.0' in result.stdout
    assert 'pip install mmdet==3.3.0' in result.stdout
    assert '2 things would fail' in result.stdout


def test_without_rich(broken):
    """A package that needs torch alone does not install it."""
    result = broken(without=('rich',))
    assert result.returncode == 1
    assert result.stderr == "check_env: No module named 'rich'. Type: pip install rich\n"


@pytest.mark.slow
def test_wrong_versions_are_reported(broken):
    def prepare(site):
        rename(site, 'setuptools', '82.0.1')
        rename(site, 'mmcv', '2.2.0')

    result = broken(prepare=prepare)
    assert result.returncode == 1, result.stderr
    assert 'setuptools 82.0.1 is installed (needed: 77.0 or newer, below 81)' in result.stdout
    assert 'pip install "setuptools<81"' in result.stdout
    assert 'mmcv 2.2.0 is installed' in result.stdout


def without_ops(site):
    """Let mmcv be like mmcv-lite."""
    (site / 'mmcv').unlink()
    shutil.copytree(SITE / 'mmcv', site / 'mmcv', ignore=shutil.ignore_patterns('_ext*', '__pycache__'))


@pytest.mark.slow
def test_mmcv_without_compiled_ops(broken):
    result = broken(prepare=without_ops)
    assert result.returncode == 0, result.stdout + result.stderr
    assert 'right: those of mmgrc, without compiled code' in result.stdout
    assert 'Mask R-CNN with GRC-PVT on cpu' in result.stdout


@pytest.mark.slow
def test_mmcv_with_ops_that_do_not_load(broken):
    """As ops compiled for another torch: versions look right, and ours do not replace them."""

    def prepare(site):
        without_ops(site)
        (site / 'mmcv' / '_ext.py').write_text("raise ImportError('undefined symbol: _ZN3c10')")

    result = broken(prepare=prepare)
    assert result.returncode == 1, result.stderr
    assert 'mmcv ops on cpu: they do not fit torch' in result.stdout
    assert 'undefined symbol: _ZN3c10' in result.stdout
    assert rebuild_mmcv_command() in result.stdout
    assert 'a forward' not in result.stdout


@pytest.mark.parametrize('ops', ['pytorch', 'compiled'])
def test_gpu_that_torch_cannot_use(ops, monkeypatch):
    """mmcv is compiled for the new torch only if it was compiled before."""
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    monkeypatch.setattr('torch.version.cuda', None)
    monkeypatch.setattr(Path, 'exists', lambda path: str(path) == '/dev/nvidia0')
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setattr('mmgrc.env.mmcv_ops.ops_in_use', lambda: ops)
    (finding,) = check_env._gpu()
    assert finding.problem == 'there is one, but torch is a build for the CPU'
    assert finding.remedy.startswith('pip install --force-reinstall torch --index-url ')
    assert ('mmcv' in finding.remedy) == (ops == 'compiled')


def test_several_kinds_of_mmcv(broken):
    def prepare(site):
        for name in ('mmcv', 'mmcv_lite'):
            folder = site / f'{name}-2.1.0.dist-info'
            if not folder.exists():
                folder.mkdir()
                (folder / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 2.1.0\n')

    result = broken(without=('onedl_mm',), prepare=prepare)
    assert result.returncode == 1, result.stderr
    assert 'pip uninstall -y mmcv mmcv-lite && pip install mmcv-lite==2.1.0' in result.stdout


def test_coco(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('COCO_ROOT', raising=False)
    (finding,) = check_env._coco()
    assert finding.problem is None
    assert 'COCO_ROOT' in finding.remedy

    monkeypatch.setenv('COCO_ROOT', str(tmp_path / 'coco'))
    (tmp_path / 'coco' / 'annotations').mkdir(parents=True)
    for name in ('train', 'val'):
        (tmp_path / 'coco' / f'{name}2017').mkdir()
        (tmp_path / 'coco' / 'annotations' / f'instances_{name}2017.json').write_text('{}')
    (finding,) = check_env._coco()
    assert finding.remedy is None

    (tmp_path / 'coco' / 'val2017').rmdir()
    (finding,) = check_env._coco()
    assert finding.problem == 'there is no val2017'


def test_findings_go_on_after_a_crash(monkeypatch):
    def crash():
        raise RuntimeError('no such thing\nand more')
        yield

    monkeypatch.setattr(check_env, '_versions', crash)
    findings = list(check_env.check_environment())
    assert findings[0].problem == 'RuntimeError: no such thing'
    assert [finding.what for finding in findings[1:]] == ['COCO']
