"""The classes that config entries name as their type, and their arguments."""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Mapping

from mmengine.config import Config
from mmengine.registry import Registry

__all__ = ['ANYWHERE', 'BUILDER_ARGUMENTS', 'class_arguments', 'find_class', 'hook_configs', 'registered_class']

ANYWHERE = {'type', '_delete_', '_scope_'}
"""Keys that any entry may have."""
BUILDER_ARGUMENTS = {
    'optim_wrapper': {'optimizer', 'paramwise_cfg', 'constructor'},
    'param_scheduler': {'convert_to_iter_based'},
    'default_hooks': {'priority'},
    'custom_hooks': {'priority'},
}
"""Keys that MMEngine's builders remove from an entry before they create its class."""


def class_arguments(config: Mapping, scope: str | None = None) -> set[str] | None:
    """The keys that a dictionary with a ``type`` may have. None if they cannot be determined.

    Args:
        config: The dictionary.
        scope: See :func:`find_class`.
    """
    kind = config.get('type')
    if isinstance(kind, str):
        kind = find_class(kind.rsplit('.', 1)[-1], scope)
    if not isinstance(kind, type):
        return None
    names = set(ANYWHERE)
    for parent in kind.__mro__:
        if '__init__' not in vars(parent):
            continue
        parameters = inspect.signature(parent.__init__).parameters.values()
        names.update(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        # A parent gets more only through **kwargs.
        if parent is object or not any(p.kind == p.VAR_KEYWORD for p in parameters):
            return None if parent is object else names - {'self'}
    return None


@functools.cache
def find_class(name: str, scope: str | None = None) -> type | None:
    """The class of that name in a registry of a package or of MMEngine.

    Args:
        name: The class's name in the registry.
        scope: The ``default_scope`` of the config. Any but mmpretrain's means MMDetection.
    """
    own = scope == 'mmpretrain' and importlib.util.find_spec(scope) is not None
    package = importlib.import_module(f'{scope if own else "mmdet"}.registry')
    for registry in vars(package).values():
        if not isinstance(registry, Registry):
            continue
        registry.import_from_location()
        for place in (registry, registry.parent):
            if place is not None and name in place.module_dict:
                return place.module_dict[name]
    return None


def registered_class(config: Mapping, registry: Registry) -> type | None:
    """The class that a dictionary names as its ``type``. None if no registry has that name."""
    kind = config.get('type')
    kind = registry.get(kind) if isinstance(kind, str) else kind
    return kind if isinstance(kind, type) else None


def hook_configs(config: Config) -> dict[str, object]:
    """The entries of all hooks, each with the option that names it."""
    hooks = {f'default_hooks.{name}': hook for name, hook in (config.get('default_hooks') or {}).items()}
    hooks.update({f'custom_hooks.{number}': hook for number, hook in enumerate(config.get('custom_hooks') or [])})
    return hooks
