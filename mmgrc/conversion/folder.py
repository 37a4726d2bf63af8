"""The folder of a data set: its files, its images, and what was wrong with them."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mmgrc.datasets.images import IMAGE_SUFFIXES, files_below, image_size
from mmgrc.runs.error import InputError, first_few

__all__ = ['Folder', 'first_bytes', 'read_json', 'read_text', 'read_xml', 'split_of']

_MASK_FOLDERS = ('SegmentationObject', 'SegmentationClass')
_SHOWN = 5
"""This many faults of a kind are named."""
_SPLITS = {
    'train': 'train',
    'training': 'train',
    'obj_train_data': 'train',
    'val': 'val',
    'valid': 'val',
    'validation': 'val',
    'obj_valid_data': 'val',
    'obj_validation_data': 'val',
    'test': 'test',
    'testing': 'test',
    'obj_test_data': 'test',
}


def split_of(path: Path | PurePosixPath) -> str | None:
    """Return the split that a folder of a relative path is named after: ``'val'`` for ``valid/images/1.jpg``."""
    return next((_SPLITS[part.lower()] for part in path.parts[:-1] if part.lower() in _SPLITS), None)


class _FaultError(Exception):
    """A file that makes the conversion impossible. Others are read first, so that one message names several."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind = kind


class _SkipError(Exception):
    """An image that is left out."""


class Folder:
    """The files of a data set below one folder, and what readers found wrong with them.

    Args:
        source: The folder, or a file in it.
        images: Another folder, which has the images.

    Raises:
        InputError: There is no such folder.
    """

    def __init__(self, source: str | Path, images: str | Path | None = None) -> None:
        path = Path(os.path.abspath(Path(source).expanduser()))
        self.file = path if path.is_file() else None
        """The file that was given instead of a folder."""
        self.root = path.parent if self.file else path
        self.images = Path(os.path.abspath(Path(images).expanduser())) if images else self.root
        for folder in (self.root, self.images):
            if not folder.is_dir():
                raise InputError(f'there is no folder {folder}')
        self.skipped: dict[str, list[str]] = {}
        """What was left out: for each reason, where."""
        self.notes: list[str] = []
        """What else a user should know."""
        self._faults: dict[str, list[str]] = {}
        self.files = files_below(self.root)
        """All files, sorted."""
        self._sizes: dict[Path, tuple[int, int]] = {}
        self._by_name: dict[str, list[Path]] = {}
        self._by_stem: dict[str, list[Path]] = {}
        for image in self.all_images():
            self._by_name.setdefault(image.name, []).append(image)
            self._by_stem.setdefault(image.stem, []).append(image)

    def all_images(self) -> list[Path]:
        """Return all files with the suffix of an image, sorted. Those of VOC's folders of masks are none."""
        files = self.files if self.images == self.root else files_below(self.images)
        return [
            file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and file.parent.name not in _MASK_FOLDERS
        ]

    def with_suffix(self, *suffixes: str) -> list[Path]:
        """Return the file that was given, or all files with one of some suffixes, sorted."""
        files = [self.file] if self.file else self.files
        return [file for file in files if file.suffix.lower() in suffixes]

    def name(self, path: Path) -> str:
        """Return a path relative to the folder, for messages."""
        return os.path.relpath(path, self.root)

    def skip(self, reason: str, where: str) -> None:
        """Note that something is left out."""
        self.skipped.setdefault(reason, []).append(where)

    @contextlib.contextmanager
    def each(self) -> Iterator[None]:
        """Read one file or image. What is wrong with it is collected, and the reader continues with the next."""
        try:
            yield
        except _SkipError:
            pass
        except _FaultError as fault:
            self._faults.setdefault(fault.kind, []).append(str(fault))

    def broken(self, file: Path, reason: str) -> Exception:
        """Return the exception for a file that cannot be understood."""
        return _FaultError('broken', f'{self.name(file)}: {reason}')

    def require_no_faults(self) -> None:
        """Report everything that :meth:`each` collected.

        Raises:
            InputError: There was something. The message has the first few of each kind.
        """
        kinds = {
            'missing': (
                f'images missing in {self.images}',
                'Put them there, name their folder with --images, or remove their annotations',
            ),
            'outside': (
                f'paths that lead out of {self.images}',
                'Give a folder that has both annotations and images, or name the folder of the images with --images',
            ),
            'ambiguous': (
                'names of images that several folders have',
                'Rename the images, or convert the folders one by one',
            ),
            'unreadable': ('images that cannot be read', 'Replace them, or remove them and their annotations'),
            'broken': ('broken annotation files', 'Correct them, or export them again'),
        }
        messages = []
        for kind, (words, remedy) in kinds.items():
            if found := self._faults.get(kind):
                shown = '; '.join(found[:_SHOWN]) + ('; ...' if len(found) > _SHOWN else '')
                messages.append(f'{words} ({len(found)}): {shown}. {remedy}')
        if messages:
            raise InputError('. '.join(messages))

    def find(self, reference: str, near: Path, *others: str) -> Path:
        """Return the image that an annotation names.

        The path is tried as it is, relative to the annotation and to the folder. Otherwise an image of the same name is
        searched, since paths of another machine are common.

        Args:
            reference: Path or name of an image.
            near: The annotation file.
            others: Further names to try, such as the one of the annotation file.
        """
        wanted = PurePosixPath(reference.replace('\\', '/'))
        if str(wanted) not in ('', '.'):
            for base in (near.parent, self.images):
                path = Path(os.path.normpath(base / wanted))
                # Path.is_file raises for names that are too long.
                if os.path.isfile(path) and self._is_inside(path):
                    return path
            leaves = not wanted.is_absolute() and not any(
                self._is_inside(Path(os.path.normpath(base / wanted))) for base in (near.parent, self.images)
            )
            if leaves and self.images == self.root:
                raise _FaultError('outside', f'{reference} (in {self.name(near)})')
        for name in (wanted, *map(PurePosixPath, others)):
            found = self._by_name.get(name.name) or (
                self._by_stem.get(name.name) if name.suffix.lower() not in IMAGE_SUFFIXES else None
            )
            if found:
                return self._closest(found, name, near)
        kind = 'outside' if wanted.is_absolute() and os.path.isfile(wanted) else 'missing'
        raise _FaultError(kind, f'{reference or others[0]} (in {self.name(near)})')

    def require_inside(self, path: Path, reference: str, near: Path) -> Path:
        """Return a path without ``..``, if it is inside of the folder, or of that of the images."""
        path = Path(os.path.normpath(path))
        if not self._is_inside(path):
            raise _FaultError('outside', f'{reference} (in {self.name(near)})')
        return path

    def _is_inside(self, path: Path) -> bool:
        return path.is_relative_to(self.root) or path.is_relative_to(self.images)

    def _closest(self, found: Sequence[Path], wanted: PurePosixPath, near: Path) -> Path:
        def closeness(path: Path) -> tuple[int, int]:
            # Parts in common with the path that is wanted, from its end; with the annotation's, from its start.
            return _common(path.parts[::-1], wanted.parts[::-1]), _common(path.parts, near.parts)

        best = max(map(closeness, found))
        closest = [path for path in found if closeness(path) == best]
        if len(closest) > 1:
            raise _FaultError('ambiguous', f'{wanted} ({first_few([self.name(path) for path in closest])})')
        return closest[0]

    def missing(self, what: str) -> Exception:
        """Return the exception for an image that is not there."""
        return _FaultError('missing', what)

    def size(self, path: Path, stated: Sequence[object] = (), near: Path | None = None) -> tuple[int, int]:
        """Return width and height of an image, in pixels, as MMDetection loads it.

        Args:
            path: The image.
            stated: Width and height according to the annotations, as numbers or text. If they are others, the image is
                left out. They are unknown if one of them is zero or empty.
            near: The annotation file.
        """
        if path not in self._sizes:
            try:
                height, width = image_size(path)
            except ValueError as error:
                raise _FaultError('unreadable', str(error)) from error
            self._sizes[path] = width, height
        size = self._sizes[path]
        try:
            sides = tuple(float(side or 0) for side in stated)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            sides = (math.nan,)
        if not all(0 <= side < math.inf for side in sides):
            raise self.broken(near or path, f'the size of {self.name(path)} is {stated}, not two numbers')
        if sides and all(sides) and sides != size:
            hint = ', so its EXIF entry rotates it' if sides[::-1] == size else ''
            self.skip(
                'images of another size than their annotations say',
                f'{self.name(path)} ({size[0]}x{size[1]}, not {sides[0]:g}x{sides[1]:g}{hint})',
            )
            raise _SkipError
        return size


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    number = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        number += 1
    return number


def first_bytes(path: Path, number: int = 4096) -> bytes:
    """Return the start of a file. Empty if it cannot be read."""
    try:
        with open(path, 'rb') as file:
            return file.read(number)
    except OSError:
        return b''


def read_text(folder: Folder, path: Path) -> str:
    """Read a text file, of UTF-8 with or without its mark."""
    try:
        return path.read_text(encoding='utf-8-sig')
    except OSError as error:
        raise folder.broken(path, f'it cannot be read: {error.strerror}') from error
    except UnicodeDecodeError as error:
        raise folder.broken(
            path,
            f'it is not a text file in UTF-8 (byte {error.start} is {error.object[error.start]:#x}). Save it as one',
        ) from error


def read_json(folder: Folder, path: Path) -> Any:
    """Read a JSON file."""
    try:
        return json.loads(read_text(folder, path))
    except (ValueError, RecursionError) as error:
        # Not only JSONDecodeError: Python refuses numbers of thousands of digits.
        raise folder.broken(path, f'it is not JSON: {error}') from error


def read_xml(folder: Folder, path: Path) -> Any:
    """Read an XML file, and return its root element.

    Entities are refused, since a small file could expand to gigabytes.

    Raises:
        InputError: defusedxml is not installed.
    """
    try:
        from defusedxml import DefusedXmlException, ElementTree
    except ImportError as error:
        raise InputError('to read XML files type: pip install defusedxml') from error
    try:
        return ElementTree.parse(path).getroot()
    except DefusedXmlException as error:
        raise folder.broken(path, 'it declares entities, which annotations do not need') from error
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise folder.broken(path, f'it is not XML: {error}') from error
    except OSError as error:
        raise folder.broken(path, f'it cannot be read: {error.strerror}') from error
