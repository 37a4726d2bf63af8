"""Read images the same way for the model and for drawing."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import cv2
import mmcv
import numpy as np
from mmengine import fileio
from PIL import Image, UnidentifiedImageError

__all__ = [
    'IMAGE_SUFFIXES',
    'evenly_spaced',
    'files_below',
    'header_size',
    'image_size',
    'is_truncated_jpeg',
    'read_image',
]

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
"""What is searched for in folders. A file that is named may have any suffix."""
_T = TypeVar('_T')
_ORIENTATION, _LYING = 0x0112, (5, 6, 7, 8)
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN = b'\xff\xd8', b'\xff\xd9', 0xDA


def files_below(root: str | Path) -> list[Path]:
    """All files below a folder, sorted. Links to folders are followed, once each. Hidden files are left out."""
    seen, files = set(), []
    for parent, folders, names in os.walk(root, followlinks=True):
        folders[:] = [f for f in folders if not f.startswith('.') and f != '__MACOSX']
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        files += [Path(parent, name) for name in names if not name.startswith('.')]
    return sorted(files)


def evenly_spaced(images: Sequence[_T], count: int) -> list[_T]:
    """Choose ``count`` images at equal distances, from the first to the last, or all if there are fewer."""
    places = np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)
    return [images[place] for place in places.tolist()]


def read_image(path: str | Path) -> np.ndarray:
    """Read an image as MMDetection's ``LoadImageFromFile`` does, so that boxes and masks fit it.

    The result always has three channels and 8 bits, whatever the format of the file (grey, palette, transparency,
    16 bits, CMYK). The EXIF orientation is applied.

    Args:
        path: A file, or a URL that a file backend of MMEngine can read (``s3://...``).

    Returns:
        (H, W, 3), BGR, uint8.

    Raises:
        ValueError: The file is missing, cannot be read or decoded, or does not fit into memory. The message names it.
    """
    try:
        content = fileio.get(str(path))
        # OpenCV's error for empty files does not say that they are empty.
        image = mmcv.imfrombytes(content, flag='color', backend='cv2') if content else None
    except (OSError, ImportError) as error:
        raise ValueError(f'{path} cannot be read: {getattr(error, "strerror", None) or error}') from error
    except cv2.error as error:
        raise ValueError(f'{path} cannot be decoded: {_explain(error)}') from error
    except MemoryError as error:
        raise ValueError(f'{path} does not fit into memory') from error
    if image is None:
        raise ValueError(f'{path} is not an image, or is truncated')
    return image


def image_size(path: str | Path) -> tuple[int, int]:
    """Return rows and columns of an image as MMDetection loads it.

    Only an image that its EXIF entry may rotate, or whose header is unusual, is decoded for that.

    Args:
        path: A local file.

    Raises:
        ValueError: The file is missing or truncated, or cannot be read or decoded. The message names it.
    """
    if is_truncated_jpeg(path):
        raise ValueError(f'{path} is truncated: the end of the image is missing')
    header = _read_header(path)
    if header is None or header[2]:
        return read_image(path).shape[:2]
    return header[:2]


def header_size(path: str | Path) -> tuple[int, int] | None:
    """Return rows and columns from an image's header, rotated by its EXIF entry. None if they cannot be determined."""
    header = _read_header(path)
    if header is None:
        return None
    height, width, lying = header
    return (width, height) if lying else (height, width)


def is_truncated_jpeg(path: str | Path) -> bool:
    """Return whether the end of a JPEG file is missing. The file is only decoded if its end is not as usual.

    Args:
        path: A local file. Other formats, and files that cannot be opened, give False.
    """
    try:
        with open(path, 'rb') as file:
            if file.read(2) != _START_OF_IMAGE:
                return False
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                # Backwards, since cameras append other data. A thumbnail in the header has an end as well.
                if content.rfind(_END_OF_IMAGE, _first_scan(content)) >= 0:
                    return False
    except OSError:
        return False
    # Without its end marker, a file may still have each pixel, and readers accept it.
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, Image.DecompressionBombError, ValueError, SyntaxError):
        return True
    return False


def _first_scan(content: mmap.mmap) -> int:
    """Where the segments of a JPEG header end, and its pixels start."""
    place = len(_START_OF_IMAGE)
    while (head := content[place : place + 4])[:1] == b'\xff' and len(head) == 4 and head[1] != _START_OF_SCAN:
        # Any number of 0xFF may be before a marker.
        place += 1 if head[1] == 0xFF else 2 + int.from_bytes(head[2:], 'big')
    return place


def _read_header(path: str | Path) -> tuple[int, int, bool] | None:
    """Rows and columns as they are stored, and whether the EXIF entry swaps them."""
    try:
        with Image.open(path) as image:
            return image.height, image.width, image.getexif().get(_ORIENTATION) in _LYING
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError):
        return None


def _explain(error: cv2.error) -> str:
    if 'CV_IO_MAX_IMAGE' in str(error):
        return (
            'it has more pixels than OpenCV reads, 2^30 in all and 2^20 a side. Cut it into tiles, or raise the '
            'environment variable OPENCV_IO_MAX_IMAGE_PIXELS (or _WIDTH, _HEIGHT)'
        )
    return ' '.join(str(error).split())
