"""Write a config that trains a detector on a converted data set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from mmgrc.runs.config import load_config
from mmgrc.runs.error import InputError
from mmgrc.runs.preflight.datasets import head_classes

__all__ = ['BOXES', 'LOADERS', 'MASKS', 'class_heads', 'config_text', 'load_without_processes', 'require_plain']

MASKS, BOXES = 'mmgrc::mask_rcnn_grc_pvt.py', 'mmgrc::retinanet_grc_pvt.py'
"""The configs to start from, with masks and without."""
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
_REPLACED = re.compile(r"""\{\{['"]?\s*(file(Dirname|Basename|BasenameNoExtension|Extname)\b|\$\w|_base_\.)""")
"""The start of what MMEngine replaces in the text of a config, also inside of strings."""


def require_plain(classes: Sequence[str], *paths: str) -> None:
    """Require that a config can have some names, and that the copy that a run writes of it has them, too.

    Args:
        classes: Names of classes.
        *paths: Paths that the config will contain.

    Raises:
        InputError: MMEngine would replace a part of one, or a file cannot contain it.
    """
    for kind, texts, remedy in (
        ('class', classes, 'Rename it, or leave it out with --classes'),
        ('path', paths, 'Give another one'),
    ):
        for text in texts:
            if found := _REPLACED.search(text):
                raise InputError(
                    f'the {kind} {text!r} has {text[found.start() :]!r}, and configs replace {{{{ ... }}}} by other '
                    f'text. {remedy}'
                )
            try:
                text.encode('utf-8')
            except UnicodeEncodeError as error:
                raise InputError(
                    f'the {kind} {text!r} has {text[error.start]!r}, which is no character of Unicode. {remedy}'
                ) from error


def class_heads(base: str, objects: int, masks: int) -> list[str]:
    """Return the names of the ``num_classes`` of a config's heads, such as ``'model.bbox_head.num_classes'``.

    Args:
        base: The config.
        objects: Number of objects of the data set.
        masks: How many of them have a mask.

    Raises:
        InputError: The config cannot be read, cannot be changed for other classes, or needs more masks.
    """
    config = load_config(base)
    heads = [name for name, _ in head_classes(config.get('model') or {})]
    if not heads or not all(config.get(loader) for loader in LOADERS):
        raise InputError(f'--config {base}: it lacks one of {", ".join(LOADERS)}, or a head with num_classes')
    if len(set(heads)) != len(heads):
        raise InputError(
            f'--config {base}: {heads[0].removesuffix(".num_classes")} is a list of heads. Write the config by hand, '
            'as in docs/own_data.md, or choose another'
        )
    if any('mask_head' in name for name in heads) and masks < objects:
        raise InputError(
            f'--config {base} trains masks, and {objects - masks} of {objects} objects have none. Choose a detector of '
            f'boxes, such as {BOXES}, or add --missing-masks box (or skip)'
        )
    return heads


def config_text(folder: Path, base: str, classes: Sequence[str], heads: Sequence[str], test: bool) -> str:
    """Return the content of a config.

    Args:
        folder: The folder that it will be in.
        base: The config to start from: a name, or an absolute path.
        classes: Names of the classes.
        heads: What :func:`class_heads` gave.
        test: Whether the data set has a test split. Otherwise the validation split is used.
    """
    model: dict = {}
    for name in heads:
        *parents, key = name.split('.')[1:]
        place = model
        for parent in parents:
            place = place.setdefault(parent, {})
        place[key] = len(classes)
    return f"""# Written by tools/convert_dataset.py.
_base_ = {base!r}

# The folder of this file.
data_root = {_data_root(folder)}
metainfo = dict(classes={tuple(classes)!r})

train_dataloader = {_loader('train')}
val_dataloader = {_loader('val')}
test_dataloader = {_loader('test') if test else 'val_dataloader'}
val_evaluator = {_evaluator('val')}
test_evaluator = {_evaluator('test') if test else 'val_evaluator'}

# The number of classes.
model = {_as_call(model)}
"""


def _data_root(folder: Path) -> str:
    """The string for the folder of the config. If possible MMEngine fills it in, so that the data set can move."""
    # MMEngine does not escape the path: it may have one kind of quotes, and no backslashes.
    path = str(folder)
    return repr(path) if '"' in path or '\\' in path or not path.isprintable() else '"{{ fileDirname }}"'


def _loader(split: str) -> str:
    return f"""dict(
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_{split}.json',
        data_prefix=dict(img='{split}/')))"""


def _evaluator(split: str) -> str:
    return f"dict(ann_file=f'{{data_root}}/annotations/instances_{split}.json')"


def _as_call(value: object) -> str:
    """A dictionary as configs write it."""
    if not isinstance(value, dict):
        return repr(value)
    return f'dict({", ".join(f"{key}={_as_call(inner)}" for key, inner in value.items())})'


def load_without_processes(path: str) -> Config:
    """Load a config whose loaders start no processes, since they are only built."""
    config = load_config(path)
    for loader in LOADERS:
        config[loader].update(num_workers=0, persistent_workers=False)
    return config
