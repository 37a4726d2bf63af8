"""Find options of the command line, and entries of a config, that nothing would read."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping

from mmengine.runner import Runner
from torch.utils.data import DataLoader

from .classes import ANYWHERE, BUILDER_ARGUMENTS, class_arguments
from .error import first_few

__all__ = ['LIKE', 'unused_options']

_RUNNER = set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'}
# Entries that MMEngine's Runner and MMDetection's tools read in addition to the Runner's arguments.
_READ = _RUNNER | {
    *('activation_checkpointing', 'compile', 'custom_imports', 'efficient_conv_bn_eval', 'find_unused_parameters'),
    *('model_wrapper_cfg', 'runner_type', 'sync_bn', 'tta_model', 'tta_pipeline'),
}
_LOADER = {*inspect.signature(DataLoader.__init__).parameters, 'num_batch_per_epoch', 'disable_subprocess_warning'}
# How similar, from 0 to 1, two names are if one may be a misspelling of the other.
LIKE = 0.85


def unused_options(before: Mapping, config: Mapping, options: Iterable[str]) -> Iterator[str]:
    """Find entries that nothing will read: options of the command line, and misspelt names at a config's top.

    A new entry of a dictionary with a ``type`` must be an argument of that class. Elsewhere a new entry counts as
    misspelt if another entry of the dictionary has a similar name.

    Args:
        before: The config without the options.
        config: The config with them.
        options: The options' keys, such as ``'train_dataloader.batch_size'``.

    Yields:
        A message for each.
    """
    for key in options:
        names = key.split('.')
        if names[0] not in _READ:
            yield _unused_at_top(key, config)
        elif (found := _first_new(before, config, names)) is not None:
            where, name, allowed, strict = found
            near = difflib.get_close_matches(name, sorted(allowed), cutoff=0.6 if strict else LIKE)
            if strict or near:
                meant = f'Did you mean {where}{near[0]}?' if near else f'It takes: {first_few(sorted(allowed), 20)}.'
                yield f'the option {key}: nothing reads {where}{name}. {meant}'
    for name in config:
        if name not in _READ and isinstance(config[name], dict | list):
            near = difflib.get_close_matches(name, sorted(_RUNNER), n=1, cutoff=LIKE)
            if near and name in before:
                yield f'the entry {name} of the config: nothing reads it. Did you mean {near[0]}?'


def _unused_at_top(key: str, config: Mapping) -> str:
    name = key.split('.')[0]
    # Variables of the config file are evaluated before options are merged.
    places = [path for top in sorted(_READ & set(config)) for path in _paths(config[top], top, key.rsplit('.', 1)[-1])]
    if near := difflib.get_close_matches(name, sorted(_READ), n=1, cutoff=0.6 if not places else LIKE):
        return f'the option {key}: nothing reads {name}. Did you mean {near[0]}?'
    where = f'Set where it is used: {first_few(places)}' if places else f'What is read: {first_few(sorted(_READ), 50)}'
    return f'the option {key}: nothing reads {name}. {where}.'


def _paths(config: object, path: str, name: str) -> Iterator[str]:
    """The paths of the entries below ``config`` with a given name."""
    entries = config.items() if isinstance(config, Mapping) else enumerate(config) if isinstance(config, list) else ()
    for key, value in entries:
        if key == name:
            yield f'{path}.{key}'
        yield from _paths(value, f'{path}.{key}', name)


def _first_new(before: object, config: object, names: list[str]) -> tuple[str, str, set[str], bool] | None:
    """The first entry that the options created on a path.

    Returns:
        Its position, its name, the allowed names, and whether only those are allowed.
    """
    path: list[str] = []
    scope = config.get('default_scope') if isinstance(config, Mapping) else None
    for name in names:
        if isinstance(config, list | tuple):
            before = before[int(name)] if isinstance(before, list | tuple) and int(name) < len(before) else None
            config = config[int(name)]
        elif not isinstance(config, Mapping) or name not in config:
            return None
        else:
            if path and not (isinstance(before, Mapping) and name in before):
                allowed = _arguments(config, path, scope)
                if allowed is not None:
                    return None if name in allowed else ('.'.join([*path, '']), name, allowed - ANYWHERE, True)
                beside = set(before) if isinstance(before, Mapping) else set()
                return '.'.join([*path, '']), name, beside, False
            before = before.get(name) if isinstance(before, Mapping) else None
            config = config[name]
        path.append(name)
    return None


def _arguments(config: Mapping, path: list[str], scope: str | None) -> set[str] | None:
    """The arguments of an entry's class. None if they cannot be determined."""
    if path[-1].endswith('_dataloader') and len(path) == 1:
        return _LOADER
    default = {'type': 'OptimWrapper'} if path == ['optim_wrapper'] else {}
    names = class_arguments({**default, **config}, scope)
    return names and names | (BUILDER_ARGUMENTS.get(path[0], set()) if len(path) < 3 else set())
