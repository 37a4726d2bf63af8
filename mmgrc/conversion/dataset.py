"""Convert a data set: write COCO's annotation files, links to the images, and a config that trains on them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mmgrc.runs.error import InputError, first_few
from mmgrc.runs.preflight import CocoFiles, read_datasets
from mmgrc.runs.preflight.coco_file import (
    index_coco,
    label_problems,
    read_coco_file,
    require_crowd,
    require_masks,
    why_left_out,
)
from mmgrc.runs.quiet import quiet

from .config import BOXES, LOADERS, MASKS, class_heads, config_text, load_without_processes, require_plain
from .folder import Folder
from .formats import detect_format, read
from .shapes import LabelledImage, Source, coco_annotation, group_shapes

__all__ = ['MISSING_MASKS', 'Converted', 'SplitCounts', 'convert']

MISSING_MASKS = ('keep', 'box', 'skip')
"""What becomes of objects without a mask: they are kept, get their box as mask, or their images are left out."""


class SplitCounts(NamedTuple):
    """What the annotation file of a split has."""

    images: int
    empty: int
    """Images without objects."""
    masks: int
    """Objects with a mask."""
    crowds: int
    """Objects that training and evaluation ignore."""
    objects: dict[str, int]
    """Objects of each class."""


class Converted(NamedTuple):
    """What was converted."""

    format: str
    splits: dict[str, SplitCounts]
    skipped: dict[str, list[str]]
    """What was left out: for each reason, where."""
    notes: list[str]
    config: Path


def convert(
    source: str | Path,
    out: str | Path,
    *,
    format: str | None = None,
    images: str | Path | None = None,
    classes: Sequence[str] | None = None,
    val_share: float = 0.2,
    seed: int = 0,
    missing_masks: str = 'keep',
    copy: bool = False,
    base: str | None = None,
) -> Converted:
    """Write a data set that ``tools/train.py`` takes, and check it as that tool does.

    ``OUT/annotations/instances_train.json`` and ``instances_val.json`` are in COCO's format. ``OUT/train/`` and
    ``OUT/val/`` have links to the images. ``OUT/NAME.py`` is a config, with the name of the folder. A test split of the
    source is written as well. If the conversion fails, OUT is as before.

    Args:
        source: Folder of the data set, or its annotation file.
        out: Folder to write to. It must be missing or empty.
        format: A key of :data:`~mmgrc.conversion.formats.READERS`. None: detected.
        images: Folder of the images, if they are elsewhere.
        classes: Names of the classes to keep, in the order of their ids. None: all, in the order of the source.
        val_share: Fraction of the images for validation if the source has no validation split, in (0, 1).
        seed: Seed of that choice.
        missing_masks: One of :data:`MISSING_MASKS`.
        copy: Copy the images instead of linking to them.
        base: Config to start from. None: Mask R-CNN if all objects have masks, otherwise RetinaNet.

    Raises:
        InputError: The source cannot be used, OUT is not empty, or a config cannot contain its path or a class.
        OSError: OUT cannot be written.
    """
    if not 0 < val_share < 1:
        raise InputError(f'--val-share {val_share}: give a number between 0 and 1')
    folder = Folder(source, images)
    out = Path(os.path.abspath(Path(out).expanduser()))
    _require_empty(out, folder)
    format = format or detect_format(folder)
    found = read(format, folder)
    names = _classes(found, classes)
    splits = _split(found.images, val_share, seed, format, folder)
    contents = {
        split: _content(members, names, split, format, missing_masks, folder) for split, members in splits.items()
    }
    _require_objects(contents, format, folder)
    counts = {split: _count(content, names) for split, (content, _) in contents.items()}
    objects = sum(sum(count.objects.values()) for count in counts.values())
    masks = sum(count.masks for count in counts.values())
    base = base or (MASKS if masks == objects else BOXES)
    if '::' not in base:
        # A base is relative to the config that names it.
        base = os.path.abspath(Path(base).expanduser())
    require_plain(names, str(out), base)
    heads = class_heads(base, objects, masks)
    if 0 < masks < objects:
        folder.notes.append(
            f'{objects - masks} of {objects} objects have no mask, so the config is for a detector of boxes. '
            '--missing-masks box makes masks of their boxes, --missing-masks skip leaves out their images'
        )
    config = out / f'{out.name}.py'
    with _removed_on_error(out):
        for split, (content, paths) in contents.items():
            _place_images(out / split, content, paths, copy)
            annotations = out / 'annotations' / f'instances_{split}.json'
            annotations.parent.mkdir(exist_ok=True)
            annotations.write_text(json.dumps(content), encoding='utf-8')
            _check(annotations, names, masks == objects)
        config.write_text(config_text(out, base, names, heads, 'test' in contents), encoding='utf-8')
        with quiet():
            read_datasets(load_without_processes(str(config)), LOADERS, CocoFiles())
    return Converted(format, counts, folder.skipped, folder.notes, config)


def _require_empty(out: Path, folder: Folder) -> None:
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(f'{out} exists already and is not empty. Give another folder, or remove it first')
    if out.is_relative_to(folder.root) or out.is_relative_to(folder.images):
        raise InputError(f'{out} is inside of the data set that is read. Give a folder outside of {folder.root}')


def _classes(found: Source, wanted: Sequence[str] | None) -> list[str]:
    if doubled := [name for name, count in Counter(wanted or found.classes).items() if count > 1]:
        raise InputError(f'the list of classes has {doubled[0]!r} twice. Each name must be there once')
    if wanted is None:
        return found.classes
    if absent := [name for name in wanted if name not in found.classes]:
        raise InputError(f'--classes: the data set has no {first_few(absent)}. It has: {first_few(found.classes, 20)}')
    return list(wanted)


def _split(
    images: Sequence[LabelledImage], share: float, seed: int, format: str, folder: Folder
) -> dict[str, list[LabelledImage]]:
    """The images of each split, sorted. Without a validation split, some of the others are chosen for it."""
    images = _without_repetitions(sorted(images, key=lambda image: image.path), folder)
    splits = {name: [image for image in images if image.split == name] for name in ('train', 'val', 'test')}
    # Images of no split are for training, unless the source has one.
    unsplit = [image for image in images if image.split is None]
    splits['train'] += unsplit
    splits['train'].sort(key=lambda image: image.path)
    if not splits['train']:
        found = first_few([f'{len(members)} for {split}' for split, members in splits.items() if members])
        raise InputError(
            f'{folder.root} has no images for training, but {found or "none at all"}. {_left_out(format, folder)}'
        )
    if not splits['val']:
        if len(splits['train']) < 2:
            raise InputError(f'{folder.root} has a single image. Training and validation need one each')
        number = min(max(round(share * len(splits['train'])), 1), len(splits['train']) - 1)
        chosen = set(random.Random(seed).sample(range(len(splits['train'])), number))
        all_images = splits['train']
        splits['train'] = [image for i, image in enumerate(all_images) if i not in chosen]
        splits['val'] = [image for i, image in enumerate(all_images) if i in chosen]
        folder.notes.append(
            f'the source has no validation split: {number} of {len(all_images)} images were chosen (--val-share '
            f'{share:g}, --seed {seed})'
        )
    shared = {image.path for image in splits['train']} & {image.path for image in splits['val']}
    if shared:
        folder.notes.append(f'{len(shared)} images are in both training and validation, as the source says')
    return {split: members for split, members in splits.items() if members}


def _without_repetitions(images: Sequence[LabelledImage], folder: Folder) -> list[LabelledImage]:
    kept = {}
    for image in images:
        if (image.path, image.split) in kept:
            folder.skip('labels of an image that has others already', folder.name(image.path))
        else:
            kept[image.path, image.split] = image
    return list(kept.values())


def _content(
    images: Sequence[LabelledImage], names: Sequence[str], split: str, format: str, missing_masks: str, folder: Folder
) -> tuple[dict, list[Path]]:
    """COCO's content for a split, and the path of each of its images."""
    ids = {name: number for number, name in enumerate(names, start=1)}
    categories = [{'id': number, 'name': name} for name, number in ids.items()]
    by_id = {category['id']: category for category in categories}
    parents = [str(image.path.parent) for image in images]
    common = Path(os.path.commonpath(parents)) if parents else Path()
    records, annotations, paths = [], [], []
    for image in images:
        where = folder.name(image.path)
        record = {
            'id': len(records) + 1,
            'file_name': image.path.relative_to(common).as_posix(),
            'width': image.width,
            'height': image.height,
        }
        new = []
        for shapes in group_shapes(image.shapes):
            if shapes[0].label not in ids:
                folder.skip('objects of classes that --classes leaves out', where)
                continue
            annotation = coco_annotation(shapes, image.width, image.height, missing_masks == 'box')
            if isinstance(annotation, dict):
                ends = {
                    'id': len(annotations) + len(new) + 1,
                    'image_id': record['id'],
                    'category_id': ids[shapes[0].label],
                }
                annotation = {**ends, **annotation}
                reason = why_left_out(annotation, record, by_id, masks=True)
            else:
                reason = annotation
            if reason:
                folder.skip(f'objects: {reason}', where)
            else:
                new.append(annotation)
        if missing_masks == 'skip' and not all('segmentation' in annotation for annotation in new):
            folder.skip('images with an object that has no mask (--missing-masks skip)', where)
            continue
        records.append(record)
        annotations += new
        paths.append(image.path)
    content = {
        'info': {'description': f'{split} split, converted from {format}'},
        'images': records,
        'annotations': annotations,
        'categories': categories,
    }
    return content, paths


def _require_objects(contents: dict[str, tuple[dict, list[Path]]], format: str, folder: Folder) -> None:
    for split in ('train', 'val'):
        content = contents[split][0]
        if not content['images'] or (split == 'train' and not content['annotations']):
            raise InputError(
                f'nothing is left for {split}: {len(content["images"])} images, {len(content["annotations"])} objects. '
                f'{_left_out(format, folder)}'
            )


def _left_out(format: str, folder: Folder) -> str:
    reasons = [f'{len(where)} {reason} (such as {where[0]})' for reason, where in folder.skipped.items()]
    return f'The folder was read as {format}. Left out: {first_few(reasons) or "nothing"}'


def _count(content: dict, names: Sequence[str]) -> SplitCounts:
    objects = Counter(annotation['category_id'] for annotation in content['annotations'])
    return SplitCounts(
        images=len(content['images']),
        empty=len(content['images']) - len({annotation['image_id'] for annotation in content['annotations']}),
        masks=sum('segmentation' in annotation for annotation in content['annotations']),
        crowds=sum(annotation['iscrowd'] for annotation in content['annotations']),
        objects={name: objects[number] for number, name in enumerate(names, start=1)},
    )


@contextlib.contextmanager
def _removed_on_error(out: Path) -> Iterator[None]:
    """Create a folder. If what follows fails, or is interrupted, remove what it has."""
    existed = out.is_dir()
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        if existed:
            out.mkdir(exist_ok=True)
        raise


def _place_images(target: Path, content: dict, paths: Sequence[Path], copy: bool) -> None:
    target.mkdir()
    for record, path in zip(content['images'], paths, strict=True):
        place = target / record['file_name']
        place.parent.mkdir(parents=True, exist_ok=True)
        if copy:
            shutil.copyfile(path, place)
            continue
        try:
            # A relative link stays right where both folders are seen under another path, as in a container.
            place.symlink_to(os.path.relpath(path, os.path.realpath(place.parent)))
        except OSError as error:
            raise InputError(f'{place} cannot be a link ({error.strerror}). Add --copy to copy the images') from error


def _check(path: Path, names: Sequence[str], masks: bool) -> None:
    """Check a file as training and evaluation do."""
    try:
        content = read_coco_file(path)
        require_crowd(path, content)
        _, problem = label_problems(index_coco(content), names)
        if masks:
            for use in ('train', 'evaluate'):
                require_masks(path, content, [category['id'] for category in content['categories']], use)
    except ValueError as error:
        raise InputError(f'the converted file does not pass the checks of training: {error}') from error
    if problem:
        raise InputError(f'the converted file {path} does not pass the checks of training: {problem}')
