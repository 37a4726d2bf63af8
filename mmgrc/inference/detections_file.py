"""A file of detections in COCO's format that is written while they are found, in constant memory."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from mmgrc.engine.files import open_atomically

__all__ = ['DetectionsFile']


class DetectionsFile:
    """Detections as a data set in COCO's format whose annotations have a ``score``.

    As a context manager. Until its end, images and annotations are in unnamed files of the same folder. At its end, or
    when an exception ends it, they become one file.

    Args:
        path: The file to write. Its folder exists.
        classes: Names of the labels.
        videos: Records of the videos that the images are frames of, as in COCO-VID.

    Raises:
        OSError: The files cannot be written.
    """

    def __init__(self, path: Path, classes: Sequence[str], videos: Sequence[dict] = ()) -> None:
        self.path, self.classes, self.videos = path, classes, list(videos)
        self._files = ExitStack()
        self.images, self.annotations = (
            self._files.enter_context(tempfile.TemporaryFile(dir=path.parent))  # noqa: SIM115
            for _ in range(2)
        )
        self.image_count = self.annotation_count = 0

    def add(self, record: dict, annotations: Sequence[dict]) -> None:
        """Add an image and its annotations, which get their ids, from 1."""
        self.image_count += 1
        _append(self.images, {'id': self.image_count, **record})
        for annotation in annotations:
            self.annotation_count += 1
            _append(self.annotations, {'id': self.annotation_count, 'image_id': self.image_count, **annotation})

    def __enter__(self) -> DetectionsFile:
        return self

    def __exit__(self, *exception: object) -> None:
        categories = [{'id': i, 'name': name} for i, name in enumerate(self.classes, start=1)]
        head = {'info': {'description': 'detections of mmgrc, with scores'}, 'categories': categories}
        if self.videos:
            head['videos'] = self.videos
        with self._files, open_atomically(self.path) as file:
            file.write(json.dumps(head).encode().removesuffix(b'}'))
            for name, content in (('images', self.images), ('annotations', self.annotations)):
                file.write(f', "{name}": ['.encode())
                content.seek(0)
                shutil.copyfileobj(content, file)
                file.write(b']')
            file.write(b'}')


def _append(file: BinaryIO, item: dict) -> None:
    file.write((', ' if file.tell() else '').encode() + json.dumps(item).encode())
