"""Annotation files in COCO's format: their structure, and how MMDetection reads their annotations and labels."""

from __future__ import annotations

import contextlib
import io
import json
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmdet.datasets.api_wrappers import COCO

from ..error import first_few

__all__ = [
    'count_beyond',
    'index_coco',
    'label_problems',
    'read_coco_file',
    'require_crowd',
    'require_masks',
    'why_left_out',
]


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_id(value: object) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: object) -> bool:
    return _is_finite(value) and value > 0


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_box(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_finite, value))


def _is_flag(value: object) -> bool:
    return isinstance(value, int) and value in (0, 1)


def _is_segmentation(value: object) -> bool:
    if isinstance(value, dict):
        size = value.get('size')
        sized = isinstance(size, list) and len(size) == 2 and all(map(_is_whole, size))
        return sized and _fills(value.get('counts'), size[0] * size[1])
    return isinstance(value, list) and all(isinstance(polygon, list) and _has_points(polygon) for polygon in value)


def _has_points(polygon: list) -> bool:
    # In C, since COCO has millions of coordinates. The sum finds other types, NaN and infinity.
    try:
        return math.isfinite(sum(polygon)) and (not polygon or max(map(abs, (min(polygon), max(polygon)))) <= _FARTHEST)
    except (OverflowError, TypeError):
        return False


def _fills(counts: object, pixels: int) -> bool:
    """Whether the run lengths of a mask, as numbers or compressed, are those of so many pixels."""
    if isinstance(counts, str):
        return _compressed_lengths(counts) == pixels
    return isinstance(counts, list) and all(_is_whole(n) and n >= 0 for n in counts) and sum(counts) == pixels


def _compressed_lengths(text: str) -> int | None:
    """The sum of the run lengths in COCO's compressed form. None if it is not in that form.

    Each character has 5 bits of a length, the lowest first, and a sixth that tells whether another one follows. From
    the fourth length on, it is the difference from the length before the previous one.
    """
    if not text or not text.isascii():
        return None
    bits = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(bits < 32)
    if bits.min() < 0 or bits.max() > 63 or not len(ends) or ends[-1] != len(bits) - 1:
        return None
    starts = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(len(bits)) - np.repeat(starts, ends - starts + 1)
    if places.max() > 6:
        return None
    values = np.add.reduceat((bits & 31) << (5 * places), starts)
    # The highest bit of the last character is the sign.
    values -= np.where(bits[ends] & 16, 1 << (5 * (places[ends] + 1)), 0)
    for first in (1, 2):
        values[first::2] = np.cumsum(values[first::2])
    return None if values.min() < 0 else int(values.sum())


# In pixels. The API draws polygons point by point, and would fill the memory for larger ones.
_FARTHEST = 1_000_000


class _Field(NamedTuple):
    name: str
    allowed: Callable[[object], bool]
    words: str


# What MMDetection's reader and COCO's evaluation assume.
_REQUIRED = {
    'images': (
        _Field('id', _is_id, 'a whole number, or a string'),
        _Field('file_name', _is_name, 'the name of a file'),
        _Field('width', _is_size, 'a number above 0'),
        _Field('height', _is_size, 'a number above 0'),
    ),
    'categories': (
        _Field('id', _is_id, 'a whole number, or a string'),
        _Field('name', _is_name, 'a string that is not empty'),
    ),
    'annotations': (
        _Field('id', _is_whole, 'a whole number'),
        _Field('image_id', _is_id, 'the id of an image'),
        _Field('category_id', _is_id, 'the id of a category'),
        _Field('bbox', _is_box, 'four finite numbers: left, top, width and height'),
        _Field('area', _is_finite, 'a finite number'),
    ),
}
_CROWD = _Field('iscrowd', _is_flag, '0 or 1')
_MASK = _Field(
    'segmentation',
    _is_segmentation,
    'a list of polygons, each a list of finite numbers in pixels, or a mask with its size, and with counts for all of '
    'its pixels',
)
_SINGULAR = {'images': 'image', 'categories': 'category', 'annotations': 'annotation'}


def read_coco_file(path: str | Path) -> dict:
    """Read an annotation file as the COCO API does.

    Args:
        path: The file.

    Returns:
        The content. Its lists ``images``, ``categories`` and, if there is one, ``annotations`` have the fields that
        MMDetection and the COCO API need.

    Raises:
        ValueError: The file cannot be read, is not JSON or not in COCO's format, has no images, or a field of an entry
            is missing or has another type. The message names the file, the entry, the value and what is allowed.
    """
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except OSError as error:
        raise ValueError(f'{path} cannot be read: {error.strerror}.') from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is not JSON: {error}. It is truncated, or is another kind of file.') from error
    needed = ('images', 'categories', *(['annotations'] if _has(content, 'annotations') else []))
    if lacking := [key for key in needed if not isinstance(content.get(key) if _has(content, key) else None, list)]:
        raise ValueError(f"{path} is not in COCO's format: it has no list of {' and of '.join(lacking)}.")
    if not content['images']:
        raise ValueError(f'{path} has no images: the data set is empty.')
    for key in needed:
        _require_fields(path, content, key, _REQUIRED[key])
    return content


def _has(content: object, key: str) -> bool:
    return isinstance(content, dict) and key in content


def _require_fields(path: str | Path, content: Mapping, key: str, fields: Sequence[_Field]) -> None:
    for number, entry in enumerate(content[key], start=1):
        if not isinstance(entry, dict):
            raise ValueError(
                f"{path} is not in COCO's format: entry {number} of {key} is {entry!r}. It must be a dictionary."
            )
    for field in fields:
        for number, entry in enumerate(content[key], start=1):
            if field.allowed(entry.get(field.name)):
                continue
            which = f'entry {number} of {key}' if field.name == 'id' else f'{_SINGULAR[key]} {entry.get("id")}'
            # A mask may have thousands of numbers.
            found = f'is {reprlib.repr(entry[field.name])}' if field.name in entry else 'is missing'
            raise ValueError(f'{path}: {field.name} of {which} {found}. It must be {field.words}.')


def require_masks(path: str | Path, content: Mapping, category_ids: Sequence, use: str) -> None:
    """Check that each annotation of some categories has a segmentation.

    Args:
        path: The file.
        content: What it contains.
        category_ids: The categories.
        use: What reads the masks. ``'train'``: they must fit the images of the file. ``'load'``: they need not.
            ``'evaluate'``: COCO's evaluation, which needs 3 points in each polygon. MMDetection leaves others out.

    Raises:
        ValueError: An annotation has none, or one of unknown type, or a mask with another size than its image.
    """
    evaluated = use == 'evaluate'
    user = "COCO's evaluation of segm reads masks" if evaluated else 'the data set loads masks'
    remedy = "evaluate only bbox: metric='bbox'" if evaluated else 'load none: with_mask=False in LoadAnnotations'
    wanted = set(category_ids)
    annotations = [a for a in content.get('annotations', ()) if a['category_id'] in wanted]
    for annotation in annotations:
        if not annotation.get('segmentation'):
            raise ValueError(
                f'{path}: annotation {annotation["id"]} has no segmentation, but {user}. Remove the annotation, or '
                f'{remedy}, for a detector of boxes.'
            )
    _require_fields(path, {'annotations': annotations}, 'annotations', [_MASK])
    sizes = {image['id']: [image['height'], image['width']] for image in content['images']}
    for annotation in annotations:
        mask, size = annotation['segmentation'], sizes.get(annotation['image_id'])
        if evaluated and isinstance(mask, list) and (short := [one for one in mask if len(one) < 6 or len(one) % 2]):
            raise ValueError(
                f'{path}: segmentation of annotation {annotation["id"]} has a polygon of {len(short[0])} numbers. '
                f"COCO's evaluation needs 3 or more points, x and y of each. Remove the polygon or the annotation, or "
                f'{remedy}.'
            )
        if use == 'train' and isinstance(mask, dict) and size is not None and mask['size'] != size:
            raise ValueError(
                f'{path}: the mask of annotation {annotation["id"]} has {mask["size"][0]} rows and {mask["size"][1]} '
                f'columns, its image has {size[0]} and {size[1]}. They must be equal.'
            )


def require_crowd(path: str | Path, content: Mapping) -> None:
    """Check that annotations have ``iscrowd``, which COCO's evaluation needs and training does not.

    Raises:
        ValueError: An annotation has none.
    """
    try:
        _require_fields(path, content, 'annotations', [_CROWD])
    except ValueError as error:
        raise ValueError(f"{error} COCO's evaluation needs it; 0 means a single object.") from error


def index_coco(content: dict) -> COCO:
    """The COCO API's view of a file that has been read already."""
    coco = COCO()
    coco.dataset = content
    # It prints its progress.
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    # MMDetection's other names for these two.
    coco.img_ann_map, coco.cat_img_map = coco.imgToAnns, coco.catToImgs
    return coco


def label_problems(coco: COCO, classes: Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    """Compare the labels that MMDetection and its evaluation give to categories with a tuple of classes.

    Both number the categories in the file's order, whatever the order of the classes.

    Args:
        coco: The file.
        classes: The names in the config of data set and evaluation.

    Returns:
        For each label the name of its category in the file, and a list of problems.

    Raises:
        ValueError: A class has no category of its name. Or a category with objects shares its name with another one and
            gets the label of another class, or a label beyond the last.
    """
    names = [category['name'] for category in coco.dataset['categories']]
    if absent := [name for name in classes if name not in names]:
        raise ValueError(
            f'it lacks {len(absent)} of the {len(classes)} classes of the data set: {first_few(absent)}. It has: '
            f'{first_few(names)}. Set dataset.metainfo.classes, and num_classes of the heads, to what it has.'
        )
    ids = coco.get_cat_ids(cat_names=classes)
    by_label = tuple(coco.cats[category]['name'] for category in ids)
    used = [label for label, category in enumerate(ids) if coco.cat_img_map.get(category)]
    doubled = sorted({name for name in by_label if by_label.count(name) > 1})
    if doubled:
        same = [category for category in ids if coco.cats[category]['name'] == doubled[0]]
        message = f'{len(same)} categories have the same name {doubled[0]!r} (ids {first_few(same)})'
        if any(label >= len(classes) or by_label[label] != classes[label] for label in used):
            raise ValueError(
                f'{message}: MMDetection numbers both, so that labels are wrong, or beyond the last. Remove '
                'the one that has no objects, such as a root category, or rename it.'
            )
        return by_label, f'{message}; those with objects get the right labels. Remove the others.'
    if by_label == tuple(classes):
        return by_label, None
    return by_label, (
        f'its categories are in another order than the classes of the config: label 0 is {by_label[0]!r} in the file '
        f"and {classes[0]!r} in the config. MMDetection follows the file's order, so objects are shown under another "
        f"class's name. Write classes={by_label!r}, and the palette in that order."
    )


def count_beyond(coco: COCO) -> int:
    """Count boxes of which at least a tenth lies to the right of their image or below it."""
    pairs = [(a['bbox'], coco.imgs[a['image_id']]) for a in coco.anns.values() if a['image_id'] in coco.imgs]
    boxes = np.array([box for box, _ in pairs], float).reshape(-1, 4)
    sizes = np.array([(image['width'], image['height']) for _, image in pairs], float).reshape(-1, 2)
    beyond = boxes[:, :2] + boxes[:, 2:] - sizes
    return int((beyond > 0.1 * boxes[:, 2:]).any(axis=1).sum())


def why_left_out(annotation: Mapping, image: Mapping | None, categories: Mapping, masks: bool) -> str | None:
    """Describe why MMDetection leaves an annotation out of training.

    Args:
        annotation: The annotation.
        image: Its image. None if the file has no image with that id.
        categories: The file's categories, by id.
        masks: Whether masks are loaded.
    """
    x, y, width, height = annotation['bbox']
    if image is None:
        return 'of an image that is not in the file'
    if annotation['category_id'] not in categories:
        return 'with a category_id that no category has'
    if width < 0 or height < 0:
        return 'with an inverted box'
    if width < 1 or height < 1 or annotation['area'] <= 0:
        return 'with an empty box (less than a pixel)'
    if x >= image['width'] or y >= image['height'] or x + width <= 0 or y + height <= 0:
        return 'with a box outside of its image'
    polygons = annotation.get('segmentation')
    if masks and isinstance(polygons, list) and polygons and not any(map(_is_polygon, polygons)):
        return 'with no polygon of 3 or more points'
    return None


def _is_polygon(polygon: Sequence) -> bool:
    # As in MMDetection's LoadAnnotations.
    return len(polygon) >= 6 and len(polygon) % 2 == 0
