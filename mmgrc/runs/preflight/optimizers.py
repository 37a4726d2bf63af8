"""Checks of optimizers, and of the keys that give parameters settings of their own."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import OPTIMIZERS
from torch import nn

from ..classes import find_class
from ..error import InputError, as_input_error
from ..options import LIKE
from ..quiet import quiet

__all__ = ['check_optimizer']


def check_optimizer(config: Config, model: nn.Module, amp: bool = False, auto_scale_lr: bool = False) -> OptimWrapper:
    """Build the optimizer of a run. Entries of ``custom_keys`` that MMEngine does not apply are a warning.

    Args:
        config: The whole config.
        model: Its model.
        amp: Whether ``--amp`` was given.
        auto_scale_lr: Whether ``--auto-scale-lr`` was given.

    Raises:
        InputError: The optimizer cannot be built, or the learning rate cannot be scaled.
    """
    settings = config.get('optim_wrapper')
    if not settings:
        raise InputError(f'the config {config.filename} has no optim_wrapper, without which nothing is trained')
    automatic = settings.get('type') == 'AmpOptimWrapper'
    if (amp or automatic) and get_device() in ('cpu', 'mps'):
        what = '--amp' if amp else 'optim_wrapper.type=AmpOptimWrapper'
        raise InputError(f'{what} needs a GPU: MMEngine has no mixed precision on CPUs and on Macs. Train without it')
    if auto_scale_lr and 'base_batch_size' not in (config.get('auto_scale_lr') or {}):
        raise InputError(
            '--auto-scale-lr needs auto_scale_lr=dict(enable=False, base_batch_size=N) in the config: the total '
            'batch size that its learning rate is for'
        )
    kind = (settings.get('optimizer') or {}).get('type')
    if isinstance(kind, str) and find_class(kind) is None:
        near = difflib.get_close_matches(kind, OPTIMIZERS.module_dict, n=3) or ['AdamW', 'SGD']
        raise InputError(f'optim_wrapper.optimizer.type={kind!r}: there is no such optimizer, but {", ".join(near)}')
    custom_keys = (settings.get('paramwise_cfg') or {}).get('custom_keys') or {}
    _check_entries(custom_keys)
    with as_input_error(f'optim_wrapper of {config.filename} cannot be built'), quiet():
        optimizer = build_optim_wrapper(model, settings)
    # Other constructors have their own rules.
    if settings.get('constructor', 'DefaultOptimWrapperConstructor') == 'DefaultOptimWrapperConstructor':
        for warning in _without_effect(custom_keys, model):
            print_log(f'optim_wrapper.paramwise_cfg.custom_keys: {warning}', logger='current', level=logging.WARNING)
    return optimizer


def _check_entries(custom_keys: Mapping) -> None:
    """Refuse what is no dictionary, and nested ones, which MMEngine ignores: it splits an option at each dot."""
    for key, entry in custom_keys.items():
        if not isinstance(entry, Mapping):
            raise InputError(
                f'optim_wrapper.paramwise_cfg.custom_keys.{key}={entry!r}: give a dictionary such as dict(lr_mult=0.1)'
            )
        nested = [name for name, value in entry.items() if isinstance(value, Mapping)]
        if nested:
            raise InputError(
                f'optim_wrapper.paramwise_cfg.custom_keys: below {key!r} there is an entry {nested[0]!r}, which '
                f"nothing reads. --cfg-options cannot give a name with dots, such as '{key}.{nested[0]}': write it in "
                f"a config file, custom_keys={{'{key}.{nested[0]}': dict(lr_mult=...)}}"
            )


def _without_effect(custom_keys: Mapping[str, Mapping], model: nn.Module) -> Iterator[str]:
    """Describe the settings that do not reach a parameter whose name has their key.

    MMEngine gives a parameter the settings of the longest key in its name, and of no other key. A longer key that sets
    the same is how a user makes an exception. One that does not set it makes an exception that the user may not expect.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    # MMEngine's order.
    keys = sorted(sorted(custom_keys), key=len, reverse=True)
    matching = {name: [key for key in keys if key in name] for name in names}
    for key in keys:
        winners = {name: found[0] for name, found in matching.items() if key in found}
        lost = {
            (setting, winner): name
            for setting, value in custom_keys[key].items()
            for name, winner in winners.items()
            if value != 1 and setting not in custom_keys[winner]
        }
        for (setting, winner), name in lost.items():
            count = sum(other == winner for other in winners.values())
            yield (
                f'{key!r} has {setting}={custom_keys[key][setting]}, which does not apply to {count} parameters, such '
                f'as {name}. MMEngine takes the longest key in a name alone, here {winner!r}, which has no {setting}'
            )
        if winners and not lost and key not in winners.values():
            yield f'{key!r} has no effect: the longer key {next(iter(winners.values()))!r} applies to what it matches'
        if not winners:
            parts = {part for name in names for part in name.split('.')}
            if near := difflib.get_close_matches(key, sorted(parts), n=1, cutoff=LIKE):
                yield f'{key!r} has no effect: no parameter has it in its name. Did you mean {near[0]!r}?'
