"""Label Studio: the export "JSON", a file with a list of tasks. Coordinates are percentages of the image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from mmgrc.datasets.images import IMAGE_SUFFIXES

from ..folder import Folder, read_json
from ..shapes import LabelledImage, Shape, Source, coordinates, ellipse, encode, rectangle

__all__ = ['decode_brush', 'is_annotation', 'read']

_CHANNEL = 8
"""Bits."""
_UPLOADED = 8
"""Letters and digits that Label Studio prepends, with a hyphen, to the name of an uploaded file."""


def is_annotation(content: object) -> bool:
    """Whether the content of a JSON file is an export of Label Studio."""
    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(task, dict) and 'data' in task and 'annotations' in task for task in content)
    )


def read(folder: Folder) -> Source:
    """Read rectangles, polygons, ellipses and brushes. Keypoints and the answers to other questions are left out.

    Of several annotations of a task, the ground truth is taken, otherwise the newest.
    """
    images = []
    for path in folder.with_suffix('.json'):
        with folder.each():
            tasks = read_json(folder, path)
            if not is_annotation(tasks):
                folder.skip('JSON files that are not of Label Studio', folder.name(path))
                continue
            for task in tasks:
                with folder.each():
                    images.append(_read_task(folder, path, task))
    return Source(sorted({shape.label for image in images for shape in image.shapes}), images)


def _read_task(folder: Folder, path: Path, task: dict) -> LabelledImage:
    which = f'task {task.get("id")}'
    annotations = _objects(folder, path, f'{which}: annotations', task['annotations'])
    annotations = [one for one in annotations if not one.get('was_cancelled')]
    results: list[dict] = []
    if annotations:
        chosen = max(annotations, key=lambda one: (bool(one.get('ground_truth')), str(one.get('updated_at') or '')))
        results = _objects(folder, path, f'{which}: result', chosen.get('result'))
        _objects(folder, path, f'{which}: value', [result.get('value') or {} for result in results])
    for _ in annotations[1:]:
        folder.skip('further annotations of a task', which)
    image = _find_image(folder, path, which, task['data'])
    size = folder.size(image, _stated_size(results), path)
    shapes = []
    for result in _joined(results):
        try:
            shapes += _shapes(folder, result, size, which)
        except (TypeError, ValueError, OverflowError) as error:
            raise folder.broken(path, f'{which}: result {result.get("id")} cannot be read: {error}') from error
    return LabelledImage(image, *size, shapes)


def _objects(folder: Folder, path: Path, what: str, entries: object) -> list[dict]:
    """A list of objects. Without an entry it is empty."""
    if not isinstance(entries or [], list) or not all(isinstance(entry, dict) for entry in entries or []):
        raise folder.broken(path, f'{what} is {str(entries)[:60]}, not a list of objects')
    return entries or []


def _find_image(folder: Folder, path: Path, which: str, data: object) -> Path:
    """The image of a task. Its address ends with the name of the file, after a prefix if it was uploaded."""
    values = [value for value in data.values() if isinstance(value, str)] if isinstance(data, dict) else []
    names = [name for name in map(_file_name, values) if name.suffix.lower() in IMAGE_SUFFIXES]
    if not names:
        raise folder.broken(path, f'{which} has no image: its data is {str(data)[:80]}')
    if len(names) > 1:
        raise folder.broken(path, f'{which} has {len(names)} images. One image a task can be converted')
    head, _, rest = names[0].name.partition('-')
    return folder.find(str(names[0]), path, *([rest] if rest and len(head) == _UPLOADED else []))


def _file_name(address: str) -> PurePosixPath:
    try:
        parts = urlsplit(address)
    except ValueError:
        return PurePosixPath()
    # Files of a local storage: /data/local-files/?d=folder/1.jpg
    return PurePosixPath(parse_qs(parts.query).get('d', [unquote(parts.path)])[0])


def _stated_size(results: Sequence[dict]) -> tuple[object, object]:
    for result in results:
        if result.get('original_width') and result.get('original_height'):
            return result['original_width'], result['original_height']
    return 0, 0


def _joined(results: Sequence[dict]) -> list[dict]:
    """One entry for each shape: with some settings, shape and label are two results of the same id."""
    joined: dict[object, dict] = {}
    for number, result in enumerate(results):
        # As text, since files may have anything as the id.
        known = joined.setdefault(str(result.get('id') or '') or number, {**result, 'value': {}})
        known['value'] = {**known['value'], **(result.get('value') or {})}
    return list(joined.values())


def _shapes(folder: Folder, result: dict, size: tuple[int, int], which: str) -> Iterator[Shape]:
    value = result['value']
    labels = next((v for k, v in value.items() if k.endswith('labels') and isinstance(v, list)), [])
    # A keypoint has a width too.
    shape = None if 'keypoint' in str(result.get('type')) else _geometry(value, size)
    if shape is None:
        folder.skip(f'results of type {result.get("type")}', which)
    elif not labels:
        folder.skip('shapes without a label', which)
    elif result.get('image_rotation'):
        folder.skip('shapes on an image that was rotated in Label Studio', which)
    else:
        for label in labels:
            if not isinstance(label, str):
                raise ValueError(f'its labels are {str(labels)[:60]}. They must be text')
            yield shape._replace(label=label)


def _geometry(value: dict, size: tuple[int, int]) -> Shape | None:
    """The shape of a result, without its label. None if it is none that has an area."""
    scale = np.array(size) / 100
    if 'rle' in value:
        if not isinstance(value['rle'], list):
            raise ValueError(f'its run lengths are {str(value["rle"])[:60]}, not a list of bytes')
        return Shape('', mask=encode(decode_brush(value['rle'], size)))
    if 'points' in value:
        points = coordinates(value['points'], (100, 100))
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f'its points are {str(value["points"])[:60]}, not pairs of numbers')
        return Shape('', polygon=points * scale)
    keys = next((k for k in (('radiusX', 'radiusY'), ('width', 'height')) if k[0] in value), None)
    if keys is None or 'x' not in value:
        return None
    numbers = coordinates([value.get(key) for key in ('x', 'y', *keys)], (100, 100))
    degrees = float(value.get('rotation') or 0)
    if not np.isfinite(degrees):
        raise ValueError(f'its rotation is {degrees}')
    x, y, width, height = numbers * (*scale, *scale)
    if keys[0] == 'radiusX':
        return Shape('', polygon=ellipse(x, y, width, height, degrees))
    # Label Studio rotates a rectangle around its first corner.
    return Shape('', corners=rectangle(x, y, x + width, y + height, degrees, pivot=(x, y)))


def decode_brush(content: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Return the pixels that a brush painted, (H, W), bool.

    The format is that of the JavaScript library ``@thi.ng/rle-pack``: a stream of bits with the number of words, the
    size of a word, four sizes of run lengths, and the runs. The words are the four channels of the image. The last
    channel says what is painted.

    Args:
        content: Bytes, each as a number from 0 to 255.
        size: Width and height of the image, in pixels.

    Raises:
        ValueError: The content is truncated, or of an image of another size or kind.
    """
    bits = ''.join(f'{byte:08b}' for byte in bytes(content))
    position = 0

    def read_number(length: int) -> int:
        nonlocal position
        position += length
        if position > len(bits):
            raise ValueError('its run lengths are truncated')
        return int(bits[position - length : position], 2)

    number = read_number(32)
    if number != 4 * size[0] * size[1]:
        raise ValueError(f'its run lengths are of {number} values, and the image has 4 x {size[0]} x {size[1]}')
    word = read_number(5) + 1
    if word > _CHANNEL:
        raise ValueError(f'its values have {word} bits, and a channel of an image has {_CHANNEL}')
    lengths = [read_number(4) + 1 for _ in range(4)]
    values = np.zeros(number, np.uint8)
    start = 0
    while start < number:
        repeated = read_number(1)
        end = start + read_number(lengths[read_number(2)]) + 1
        if repeated:
            values[start:end] = read_number(word)
        else:
            values[start:end] = [read_number(word) for _ in range(start, min(end, number))]
        start = end
    return values.reshape(size[1], size[0], 4)[..., 3] > 0
