"""The check of an image file that a tool will draw."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backend_bases import FigureCanvasBase

from mmgrc.runs.preflight import check_output_file

__all__ = ['check_image_file']


def check_image_file(path: str | Path) -> None:
    """Check that Matplotlib can write a file: its format and its place. Its folder is created.

    Raises:
        InputError: It cannot be written.
    """
    check_output_file(path, [f'.{name}' for name in sorted(FigureCanvasBase.filetypes)])
