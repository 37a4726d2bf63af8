"""Places that results cannot be written to are reported before the run, and the check leaves nothing behind."""

from pathlib import Path

import pytest

from mmgrc.runs.error import InputError
from mmgrc.runs.preflight import check_output_file, check_work_dir


def test_work_dir_that_cannot_be_written_to(tmp_path):
    check_work_dir(str(tmp_path / 'a' / 'b'))
    assert not list((tmp_path / 'a' / 'b').iterdir())
    (tmp_path / 'file').write_text('')
    # Root cannot write to these either.
    for path in (tmp_path / 'file' / 'run', Path('/proc/run')):
        with pytest.raises(InputError, match=rf'the work dir {path} cannot be written to .*--work-dir'):
            check_work_dir(str(path))


def test_output_file_leaves_nothing_but_its_folder(tmp_path):
    check_output_file(tmp_path / 'a' / 'b' / 'new.png', ['.png', '.jpg'])
    check_output_file(str(tmp_path / 'new'))
    assert not list((tmp_path / 'a' / 'b').iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ['a']
    existing = tmp_path / 'a' / 'old.png'
    existing.write_text('content')
    check_output_file(existing, ['.png'])
    assert existing.read_text() == 'content'


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('folder', 'is a folder: give the name of the file to write'),
        ('file/out.png', r'cannot be written \(.*\): give another file'),
        (f'{"long" * 99}.png', r'cannot be written \(File name too long\)'),
        ('/proc/out.png', r'cannot be written \('),
        ('/dev/full/out.png', r'cannot be written \('),
    ],
)
def test_output_file_that_cannot_be_written(tmp_path, name, message):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match=message):
        check_output_file(tmp_path / name)


@pytest.mark.parametrize('name', ['out', 'out.jpg', 'png', 'out.png.part', 'out.PNG'])
def test_output_file_of_another_format(tmp_path, name):
    with pytest.raises(InputError, match=rf'/new/{name}: name it \.png or \.gif$'):
        check_output_file(tmp_path / 'new' / name, ['.png', '.gif'])
    assert not list(tmp_path.iterdir())
