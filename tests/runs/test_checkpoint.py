"""The files that are read as checkpoints, and those that are refused."""

import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint as mmengine_checkpoint

from mmgrc.runs.checkpoint import allow_mmengine_checkpoints, read_checkpoint


def test_mmengine_objects_are_read_with_the_check_on(tmp_path):
    history = HistoryBuffer([1.5, 2.5], [1, 1])
    content = {
        'state_dict': {'w': torch.ones(2)},
        'message_hub': {'log_scalars': {'loss': history}, 'runtime_info': {'x': np.float64(0.25), 'y': np.arange(3)}},
    }
    torch.save(content, tmp_path / 'c.pth')
    found = read_checkpoint(tmp_path / 'c.pth')
    assert found['message_hub']['log_scalars']['loss'].mean() == 2.0
    assert found['message_hub']['runtime_info']['x'] == 0.25


class Evil:
    def __reduce__(self):
        return (os.mkdir, ('evil',))


def test_code_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': Evil()}, 'evil.pth')
    with pytest.raises(ValueError, match=r'evil.pth cannot be read as weights'):
        read_checkpoint('evil.pth')
    assert not (tmp_path / 'evil').exists()


def test_mmengine_does_not_run_code_either(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': Evil()}, 'evil.pth')
    with pytest.raises(pickle.UnpicklingError, match='mkdir'):
        mmengine_checkpoint.CheckpointLoader.load_checkpoint('evil.pth')
    assert not (tmp_path / 'evil').exists()


def test_the_forks_second_reading_without_the_check_is_replaced(tmp_path, monkeypatch):
    def second_reading(file, map_location=None, weights_only=None):
        return torch.load(file, map_location=map_location, weights_only=False)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mmengine_checkpoint, '_safe_torch_load', second_reading, raising=False)
    allow_mmengine_checkpoints()
    torch.save({'state_dict': {'w': torch.ones(2)}}, 'good.pth')
    torch.save({'state_dict': Evil()}, 'evil.pth')
    assert mmengine_checkpoint._safe_torch_load('good.pth', map_location='cpu')['state_dict']['w'].sum() == 2
    with pytest.raises(pickle.UnpicklingError, match='mkdir'):
        mmengine_checkpoint._safe_torch_load('evil.pth', map_location='cpu')
    assert not (tmp_path / 'evil').exists()


class Attribute:
    def __reduce__(self):
        return (getattr, (HistoryBuffer, '__init__'))


def test_no_attribute_but_the_statistics_is_looked_up(tmp_path):
    torch.save({'x': Attribute()}, tmp_path / 'x.pth')
    with pytest.raises(ValueError, match=r"needs the attribute '__init__'"):
        read_checkpoint(tmp_path / 'x.pth')


def test_files_that_are_no_checkpoints(tmp_path):
    (tmp_path / 'empty.pth').write_bytes(b'')
    (tmp_path / 'text.pth').write_text('not weights')
    torch.save({'state_dict': {'w': torch.ones(1000)}}, tmp_path / 'good.pth')
    good = (tmp_path / 'good.pth').read_bytes()
    (tmp_path / 'cut.pth').write_bytes(good[: len(good) // 2])
    (tmp_path / 'list.pth').write_bytes(b'')
    torch.save([1, 2], tmp_path / 'list.pth')
    (tmp_path / 'pickle.pth').write_bytes(pickle.dumps(Evil()))
    for name in ('empty', 'text', 'cut', 'list', 'pickle'):
        with pytest.raises(ValueError, match=f'{name}.pth'):
            read_checkpoint(tmp_path / f'{name}.pth')


@pytest.fixture
def without_checksums():
    torch.serialization.set_crc32_options(False)
    yield
    torch.serialization.set_crc32_options(True)


@pytest.mark.usefixtures('without_checksums')
def test_file_without_checksums_is_read(tmp_path):
    path = tmp_path / 'c.pth'
    weights = torch.arange(1000.0)
    torch.save({'state_dict': {'w': weights}}, path)
    assert torch.equal(read_checkpoint(path)['state_dict']['w'], weights)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r'c.pth cannot be read'):
        read_checkpoint(path)
