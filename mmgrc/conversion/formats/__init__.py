"""One module for each format. Each has a reader."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from mmgrc.runs.error import InputError, first_few

from ..folder import Folder, first_bytes
from ..shapes import Source
from . import cvat, label_studio, labelme, voc, yolo

__all__ = ['READERS', 'detect_format', 'read']

READERS: dict[str, Callable[[Folder], Source]] = {
    'yolo': yolo.read,
    'voc': voc.read,
    'labelme': labelme.read,
    'cvat': cvat.read,
    'labelstudio': label_studio.read,
}
_TRIED = 20
"""This many JSON files, and as many XML files, are looked at to detect the format."""


def detect_format(folder: Folder) -> str:
    """Return the key of :data:`READERS` that a folder is for.

    Raises:
        InputError: There is none, or there are several.
    """
    found = set()
    for path in folder.with_suffix('.xml')[:_TRIED]:
        found |= {'cvat'} if cvat.is_annotation(path) else {'voc'} if voc.is_annotation(path) else set()
    for path in folder.with_suffix('.json')[:_TRIED]:
        found |= _json_format(path)
    if yolo.find_classes(folder):
        found.add('yolo')
    if found == {'coco'}:
        raise InputError(
            f"{folder.file or folder.root} is in COCO's format already. Write a config for it, as in docs/own_data.md"
        )
    found.discard('coco')
    if len(found) == 1:
        return found.pop()
    names = first_few(sorted(found or READERS), len(READERS))
    if found:
        raise InputError(f'{folder.root} has files of several formats: {names}. Choose one with --format')
    raise InputError(
        f'{folder.file or folder.root} is in none of the formats {names}. YOLO needs data.yaml, classes.txt or '
        'obj.names; of Label Studio the export must be "JSON", of CVAT "CVAT for images 1.1"'
    )


def read(format: str, folder: Folder) -> Source:
    """Read a folder with the reader of a format.

    Raises:
        InputError: Something in it is missing or broken. The message has the first few of each kind.
    """
    with folder.each():
        found = READERS[format](folder)
    folder.require_no_faults()
    return found


def _json_format(path: Path) -> set[str]:
    # Only the first bytes tell that a large file is worth reading.
    if first_bytes(path, 64).lstrip(b'\xef\xbb\xbf \r\n\t')[:1] not in (b'{', b'['):
        return set()
    try:
        content = json.loads(path.read_text(encoding='utf-8-sig'))
    except (OSError, ValueError, RecursionError):
        return set()
    if labelme.is_annotation(content):
        return {'labelme'}
    if label_studio.is_annotation(content):
        return {'labelstudio'}
    if isinstance(content, dict) and {'images', 'annotations', 'categories'} <= content.keys():
        return {'coco'}
    return set()
