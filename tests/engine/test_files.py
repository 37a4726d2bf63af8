"""Files that are complete or not there."""

import os

import pytest

from mmgrc.engine.files import open_atomically, write_atomically


def test_an_earlier_file_survives_a_full_disk(tmp_path, monkeypatch):
    path = tmp_path / 'folder' / 'file'
    write_atomically(path, b'first')
    monkeypatch.setattr(os, 'fsync', lambda descriptor: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(OSError, match='No space'):
        write_atomically(path, b'second')
    assert path.read_bytes() == b'first'
    assert list(path.parent.iterdir()) == [path]


def test_it_appears_when_it_is_complete(tmp_path):
    path = tmp_path / 'file'
    with open_atomically(path) as file:
        file.write(b'first')
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b'first'
    # As readable as other new files.
    other = tmp_path / 'other'
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode
