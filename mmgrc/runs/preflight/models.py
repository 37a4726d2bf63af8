"""Checks of models, weights and checkpoints."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlparse

import torch
from mmdet.datasets import CocoDataset
from mmdet.engine.hooks import MeanTeacherHook
from mmdet.registry import DATASETS
from mmdet.registry import HOOKS as DETECTION_HOOKS
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, LOOPS, PARAM_SCHEDULERS, Registry, init_default_scope
from torch import Tensor, nn

from mmgrc.engine.ranks import is_first_of_machine
from mmgrc.models import GRC
from mmgrc.models.backbones import CachedBackbone
from mmgrc.models.convert import checkpoint_state

from ..checkpoint import last_good_checkpoint, read_checkpoint
from ..classes import BUILDER_ARGUMENTS, class_arguments, hook_configs, registered_class
from ..config import build_model
from ..error import InputError, first_few
from ..quiet import quiet
from .datasets import dataset_configs

__all__ = [
    'check_checkpoint',
    'check_parts',
    'check_resume',
    'check_teacher',
    'check_weights',
]


def _pretrained(config: object, option: str) -> Iterator[tuple[str, str]]:
    """The checkpoints of all ``init_cfg`` entries in a model's config, each with the option that names it."""
    if isinstance(config, dict):
        init = config.get('init_cfg')
        for entry in init if isinstance(init, list | tuple) else [init]:
            if isinstance(entry, dict) and entry.get('checkpoint'):
                yield entry['checkpoint'], f'{option}.init_cfg'
        for key, value in config.items():
            yield from _pretrained(value, f'{option}.{key}')
    elif isinstance(config, list | tuple):
        for number, value in enumerate(config):
            yield from _pretrained(value, f'{option}.{number}')


def check_weights(config: Config, model: nn.Module, resumes: bool = False) -> None:
    """Check that the initial weights can be read and fit. Those with an address are downloaded now.

    Args:
        config: The whole config.
        model: Its model, which does not change.
        resumes: Whether the training continues from a checkpoint. Then it does not read ``load_from`` again.

    Raises:
        InputError: A file is missing, cannot be downloaded or read, or has no weights of the model.
    """
    load_from = None if resumes else config.get('load_from')
    options = dict(_pretrained(config.model, 'model'))
    if load_from:
        options[load_from] = 'load_from'
    contents = {}
    for source, option in options.items():
        without = f'train without: --cfg-options {option}=None'
        path = _local(source, without)
        if path is None:
            continue
        try:
            contents[source] = read_checkpoint(path)
        except ValueError as error:
            raise InputError(f'{error} Give another checkpoint, or {without}') from error
    for module in model.modules():
        source = (module.init_cfg or {}).get('checkpoint') if isinstance(module, CachedBackbone) else None
        if source in contents:
            try:
                module.match_weights(contents[source])
            except ValueError as error:
                raise InputError(f'the weights {source}, of backbone.init_cfg, do not fit: {error}') from error
    if load_from in contents:
        _check_fit(contents[load_from], model, load_from)


def _local(source: str, without: str) -> Path | None:
    """The file of some weights, downloaded if they have an address. None if MMEngine has to find it."""
    if source.startswith(('http://', 'https://')):
        return _fetch(source, without)
    if '://' in source:
        return None
    path = Path(source).expanduser()
    if not path.is_file():
        raise InputError(f'there are no weights at {source}. Give the path of a checkpoint, or {without}')
    return path


def _check_fit(checkpoint: dict, model: nn.Module, source: str) -> None:
    state, own = _loaded_state(checkpoint, source), model.state_dict()
    if not any(key in own and own[key].shape == value.shape for key, value in state.items()):
        raise InputError(
            f'no tensor of {source} (load_from) fits the model: it has {", ".join(list(state)[:3]) or "none"} ..., the '
            f'model {", ".join(list(own)[:3])} .... Weights of a backbone alone go into model.backbone.init_cfg'
        )
    for key, value in state.items():
        if key.endswith('.grc.cache') and key in own and own[key].shape != value.shape:
            raise InputError(
                f'{source} (load_from): {key} has the shape {tuple(value.shape)} there and {tuple(own[key].shape)} in '
                'the model. Set grc.cache_sizes and grc.cache_ratio to what it was trained with, or write a resized '
                'checkpoint with tools/convert_checkpoint.py --resize-caches'
            )


def _loaded_state(checkpoint: dict, source: str) -> dict[str, Tensor]:
    """The tensors that MMEngine reads from a checkpoint.

    Raises:
        InputError: The checkpoint has them where MMEngine does not look. The model would keep its random weights.
    """
    if 'state_dict' not in checkpoint and isinstance(checkpoint.get('model'), Mapping):
        raise InputError(
            f"{source} has its weights under the key 'model', and MMEngine reads them under 'state_dict'. Write such a "
            f"file: torch.save({{'state_dict': torch.load({source!r})['model']}}, 'weights.pth')"
        )
    return checkpoint_state(checkpoint)


def _fetch(url: str, without: str) -> Path | None:
    # The folder where mmengine looks, by way of torch.hub.
    target = Path(torch.hub.get_dir()) / 'checkpoints' / Path(urlparse(url).path).name
    # Only one process of a machine downloads. mmengine lets the others wait for it.
    if target.is_file() or not is_first_of_machine():
        return target if target.is_file() else None
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(target))
    except OSError as error:
        raise InputError(
            f'the weights {url} cannot be downloaded ({error}). Download them elsewhere and put them at '
            f'{target}, or {without}'
        ) from error
    return target


def check_teacher(config: Config, model: nn.Module) -> None:
    """Warn if the teacher of a semi-supervised training never gets the memory of its student.

    Args:
        config: The whole config, after :func:`check_parts`.
        model: Its model.
    """
    if not any(isinstance(module, GRC) for module in model.modules()):
        return
    for name, hook in hook_configs(config).items():
        kind = registered_class(hook, DETECTION_HOOKS) if isinstance(hook, dict) else None
        if kind is not None and issubclass(kind, MeanTeacherHook) and hook.get('skip_buffer', True):
            print_log(
                f'{name}: {kind.__name__} averages parameters alone, so the caches of the teacher stay as they are, '
                'which is empty in a new model. Its pseudo-labels come without the memory. To average the caches too: '
                f'--cfg-options {name}.skip_buffer=False',
                logger='current',
                level=logging.WARNING,
            )


def check_parts(config: Config) -> None:
    """Check hooks, schedulers and the loop of a config without creating them, since some write files when created.

    Raises:
        InputError: An entry has no type, an unknown type, or an argument that its class does not take.
    """
    init_default_scope(config.get('default_scope') or 'mmdet')
    schedulers = config.get('param_scheduler') or []
    schedulers = schedulers if isinstance(schedulers, list | tuple) else [schedulers]
    parts = {f'param_scheduler.{number}': scheduler for number, scheduler in enumerate(schedulers)}
    scope = config.get('default_scope')
    entries = [(hook_configs(config), HOOKS), (parts, PARAM_SCHEDULERS)]
    if 'type' in (config.get('train_cfg') or {}):
        entries.append(({'train_cfg': config.train_cfg}, LOOPS))
    for named, root in entries:
        # That of the default scope's package.
        with root.switch_scope_and_registry(None) as registry:
            _check_arguments(named, registry, scope)


def _check_arguments(parts: Mapping[str, object], registry: Registry, scope: str | None) -> None:
    for name, part in parts.items():
        if not isinstance(part, dict):
            continue
        if 'type' not in part:
            near = difflib.get_close_matches(name, [other for other in parts if other != name], n=1, cutoff=0.8)
            meant = f'Did you mean {near[0]}?' if near else 'It needs one.'
            raise InputError(f'{name} has no type. {meant}')
        with quiet():
            known = not isinstance(part['type'], str) or registry.get(part['type']) is not None
        if not known:
            names = [*registry.module_dict, *(registry.parent.module_dict if registry.parent else ())]
            near = difflib.get_close_matches(part['type'], names, n=3)
            meant = f' Did you mean {" or ".join(near)}?' if near else ''
            raise InputError(f'{name}: there is no type {part["type"]!r}.{meant}')
        allowed, more = class_arguments(part, scope), BUILDER_ARGUMENTS.get(name.split('.')[0], set())
        if unknown := sorted(set(part) - more - allowed if allowed is not None else ()):
            raise InputError(
                f'{name}: {part["type"]} has no argument {unknown[0]!r}. It takes: {first_few(sorted(allowed), 20)}'
            )


def check_checkpoint(config: Config, path: str, model: nn.Module | None = None) -> dict | None:
    """Check that a checkpoint has exactly the tensors of a config's model.

    Args:
        config: The whole config.
        path: The checkpoint.
        model: The model of the config, if it has been built already.

    Returns:
        Its content. None if it has an address and is read later.

    Raises:
        InputError: The file is missing, cannot be read, or belongs to another model.
    """
    if '://' in path:
        return None
    if not Path(path).expanduser().is_file():
        raise InputError(f'there is no checkpoint {path}. Training writes them to work_dirs/, named epoch_N.pth')
    try:
        checkpoint = read_checkpoint(path)
    except ValueError as error:
        raise InputError(str(error)) from error
    state = _loaded_state(checkpoint, path)
    own = (build_model(config) if model is None else model).state_dict()
    problems = {
        'are missing in it': [key for key in own if key not in state],
        'are not in the model': [key for key in state if key not in own],
        'have another shape': [key for key in own if key in state and own[key].shape != state[key].shape],
    }
    if any(problems.values()):
        found = '; '.join(
            f'{len(keys)} tensors {what} ({first_few(keys, 2)})' for what, keys in problems.items() if keys
        )
        raise InputError(
            f'{path} is a checkpoint of another model than {config.filename}: {found}. Use it with the config that it '
            f'was trained with. Its work dir has a copy.{_other_classes(config, checkpoint)}'
        )
    if other := _other_classes(config, checkpoint):
        print_log(f'{path}:{other}', logger='current', level=logging.WARNING)
    return checkpoint


def _other_classes(config: Config, checkpoint: dict) -> str:
    """A message if the classes of a checkpoint differ from those of the data sets. Otherwise an empty string."""
    trained = ((checkpoint.get('meta') or {}).get('dataset_meta') or {}).get('classes')
    loader = config.get('train_dataloader') or config.get('test_dataloader')
    if not trained or not loader:
        return ''
    dataset = next(dataset_configs(loader['dataset']))
    kind = registered_class(dataset, DATASETS)
    if kind is None or not issubclass(kind, CocoDataset):
        return ''
    classes = kind._load_metainfo(dataset.get('metainfo')).get('classes')
    if isinstance(classes, str) or not classes or tuple(classes) == tuple(trained):
        return ''
    sets = [f'{len(n)} classes ({first_few(n, 3)})' for n in (trained, classes)]
    return f' It was trained on {sets[0]}; the data here has {sets[1]}.'


def check_resume(
    config: Config,
    resume: str,
    work_dir: str,
    optimizer: OptimWrapper | None = None,
    model: nn.Module | None = None,
) -> str | None:
    """Choose and check the checkpoint from which a training resumes.

    Without one, OpenMMLab's tools must not be told to resume: they would ignore the ``load_from`` of the config.

    Args:
        config: The whole config.
        resume: A path, or ``'auto'`` for the last one of the work dir.
        work_dir: The work dir.
        optimizer: The optimizer of the config, which must be able to load the checkpoint's state.
        model: See :func:`check_checkpoint`.

    Returns:
        The path if the last checkpoint had to be skipped for an older one. None if there is no checkpoint to resume
        from. Otherwise ``resume``.

    Raises:
        InputError: The file is missing, cannot be read, or belongs to another model, to another optimizer or to no
            training. Or all checkpoints are damaged.
    """
    path = resume
    if resume == 'auto':
        last, skipped = last_good_checkpoint(work_dir)
        if last is None and skipped:
            raise InputError(
                f'--resume: no checkpoint in {work_dir} can be read. {" ".join(skipped)} Remove them to start again, '
                'or name another checkpoint.'
            )
        if last is None:
            start = f' from the weights {config.load_from}' if config.get('load_from') else ''
            print_log(f'--resume: no checkpoint in {work_dir} yet, the training starts anew{start}', logger='current')
            return None
        for reason in skipped:
            print_log(f'--resume: skipped a checkpoint: {reason}', logger='current', level=logging.WARNING)
        pointer = Path(work_dir, 'last_checkpoint')
        named = pointer.read_text().strip() if pointer.is_file() else ''
        path = str(last)
        if path != named:
            print_log(f'--resume: continuing from {path}', logger='current', level=logging.WARNING)
            resume = path
    checkpoint = check_checkpoint(config, path, model)
    lacking = [key for key in ('meta', 'optimizer', 'message_hub') if checkpoint is not None and key not in checkpoint]
    if lacking:
        raise InputError(
            f'{path} is not from a resumable training: it has no {" and no ".join(lacking)}. To start from its '
            f'weights type: --cfg-options load_from={path} (without --resume)'
        )
    if checkpoint is not None and isinstance(optimizer, OptimWrapper):
        _check_optimizer_state(checkpoint['optimizer'], optimizer.optimizer, path)
    return resume


def _check_optimizer_state(saved: dict, optimizer: torch.optim.Optimizer, path: str) -> None:
    groups = saved.get('param_groups', [])
    sizes = [[len(group['params']) for group in side] for side in (groups, optimizer.param_groups)]
    # Newer versions of torch add options. These ones distinguish the families of optimizers.
    families = [{'betas', 'momentum', 'rho', 'alpha'} & set(side) for side in (*groups[:1], optimizer.defaults)]
    if sizes[0] != sizes[1]:
        what = (
            f'has {len(sizes[0])} groups with {sum(sizes[0])} parameters, that of the config {len(sizes[1])} with '
            f'{sum(sizes[1])}'
        )
    elif len(families) == 2 and families[0] != families[1]:
        what = f'is not of the kind of {type(optimizer).__name__}, which the config has'
    else:
        return
    raise InputError(
        f'{path}: the state of its optimizer {what}: optim_wrapper was changed. Resume with the config that it was '
        f'trained with, or start from its weights: --cfg-options load_from={path} (without --resume)'
    )
