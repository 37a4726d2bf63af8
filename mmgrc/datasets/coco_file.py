"""Annotation files in COCO's format: what in them will not be trained on, found before a run starts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ['CocoFileReport', 'inspect_coco_file']

_SHOWN = 5


class CocoFileReport(NamedTuple):
    """What :func:`inspect_coco_file` found."""

    image_names: list[str]
    """``file_name`` of each image."""
    usable: int
    """Annotations of the classes with a box of at least a pixel; without them there is nothing to learn."""
    problems: list[str]
    """Of what kind are those that MMDetection leaves out, how many, and the first ids."""


def inspect_coco_file(path: str | Path, classes: Sequence[str], masks: bool = False) -> CocoFileReport:
    """Read an annotation file and look through its structure.

    Args:
        path: The file.
        classes: The names that the data set is told to use.
        masks: Whether each object must have a segmentation.

    Raises:
        ValueError: MMDetection cannot work with it: it is no JSON or not in COCO's format, has no images, lacks one of
            the classes, a box is not four finite numbers, or a segmentation is missing. The message names the file and
            what is wrong.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is no JSON: {error}. It was cut short, or is another file.') from error
    lacking = [key for key in ('images', 'annotations', 'categories') if not _has_list(content, key)]
    if lacking:
        raise ValueError(f"{path} is not in COCO's format: it has no list of {' and of '.join(lacking)}.")
    if not content['images']:
        raise ValueError(f'{path} has no images: the data set is empty.')
    names = [category['name'] for category in content['categories']]
    if absent := [name for name in classes if name not in names]:
        raise ValueError(
            f'{path} lacks {len(absent)} of the {len(classes)} classes of the data set: {_first(absent)}. It has: '
            f'{_first(names)}. Set dataset.metainfo.classes, and num_classes of the heads, to what it has.'
        )
    try:
        return _inspect(path, content, set(classes), masks)
    except KeyError as error:
        raise ValueError(f"{path} is not in COCO's format: an entry has no {error}.") from error


def _inspect(path: str | Path, content: dict, classes: set[str], masks: bool) -> CocoFileReport:
    wanted = {category['id'] for category in content['categories'] if category['name'] in classes}
    sizes = {image['id']: (image['width'], image['height']) for image in content['images']}
    kinds: dict[str, list] = {}
    usable = 0
    for annotation in content['annotations']:
        box = annotation['bbox']
        if not _is_box(box):
            raise ValueError(
                f'{path}: the box of annotation {annotation["id"]} is {box!r}. It must be four finite numbers: left, '
                'top, width and height.'
            )
        problem = _problem(annotation, sizes.get(annotation['image_id']))
        if problem:
            kinds.setdefault(problem, []).append(annotation['id'])
        elif annotation['category_id'] in wanted:
            if masks and not annotation.get('segmentation'):
                raise ValueError(
                    f'{path}: annotation {annotation["id"]} has no segmentation, and the data set is told to load '
                    'masks. Take it out, or train a detector of boxes.'
                )
            usable += 1
    problems = [f'{len(ids)} {problem} (annotation {_first(ids)})' for problem, ids in kinds.items()]
    return CocoFileReport([image['file_name'] for image in content['images']], usable, problems)


def _problem(annotation: dict, size: tuple[int, int] | None) -> str | None:
    """Why MMDetection leaves an annotation out, if it does; ``size`` is its image's width and height."""
    x, y, width, height = annotation['bbox']
    if size is None:
        return 'of an image that is not in the file'
    if width < 0 or height < 0:
        return 'with an inverted box'
    if width < 1 or height < 1 or annotation['area'] <= 0:
        return 'with an empty box (less than a pixel)'
    if x >= size[0] or y >= size[1] or x + width <= 0 or y + height <= 0:
        return 'with a box outside of its image'
    polygons = annotation.get('segmentation')
    if isinstance(polygons, list) and polygons and not any(map(_is_polygon, polygons)):
        return 'with no polygon of 3 or more points'
    return None


def _has_list(content: object, key: str) -> bool:
    return isinstance(content, dict) and isinstance(content.get(key), list)


def _is_box(box: object) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(isinstance(n, int | float) and math.isfinite(n) for n in box)


def _is_polygon(polygon: object) -> bool:
    # As MMDetection's LoadAnnotations has it.
    return isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0


def _first(values: Sequence) -> str:
    return ', '.join(map(str, values[:_SHOWN])) + (', ...' if len(values) > _SHOWN else '')
