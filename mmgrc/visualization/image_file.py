"""The check of an image file that a tool will draw."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backend_bases import FigureCanvasBase

from mmgrc.runs.error import InputError
from mmgrc.runs.preflight import check_output_file

__all__ = ['check_image_file']


def check_image_file(path: str | Path) -> None:
    """Check that Matplotlib can write a file: its format and its place. Its folder is created.

    Raises:
        InputError: It cannot be written.
    """
    formats = sorted(FigureCanvasBase.filetypes)
    # Matplotlib adds a suffix to a name without one. It ignores upper case.
    if Path(path).suffix.lower().removeprefix('.') not in formats:
        raise InputError(f'{path}: name it .{" or .".join(formats)}')
    check_output_file(path)
