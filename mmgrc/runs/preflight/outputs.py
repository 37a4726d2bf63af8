"""Checks of the places that results are written to."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path

from ..error import InputError

__all__ = ['check_output_file', 'check_work_dir']


def check_work_dir(path: str) -> None:
    """Check that results can be written, by creating the folder and a file in it. This is the last check before a run.

    Raises:
        InputError: They cannot be written.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b'0')
            file.flush()
    except OSError as error:
        raise InputError(
            f'the work dir {path} cannot be written to ({error.strerror}). Give another one with --work-dir'
        ) from error


def check_output_file(path: str | Path, suffixes: Collection[str] = ()) -> None:
    """Check that a file can be written, before the work whose results it will have. Its folder is created.

    Args:
        path: The file. One that exists is not changed.
        suffixes: The allowed ones, such as ``'.png'``. Empty: all.

    Raises:
        InputError: The file cannot be written, or has another suffix.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise InputError(f'{path} is a folder: give the name of the file to write')
        if suffixes and path.suffix not in suffixes:
            raise InputError(f'{path}: name it {" or ".join(suffixes)}')
        exists = path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open('ab'):
            pass
        if not exists:
            path.unlink(missing_ok=True)
    except OSError as error:
        # What mkdir says of it, "File exists", sounds like the file itself.
        reason = f'{path.parent} is not a folder' if path.parent.is_file() else error.strerror
        raise InputError(f'{path} cannot be written ({reason}): give another file') from error
