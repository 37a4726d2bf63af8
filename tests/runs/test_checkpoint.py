"""The files that are read as checkpoints, and those that are refused."""

import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmgrc.runs.checkpoint import read_checkpoint


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
