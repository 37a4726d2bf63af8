"""Checks of the schedule of a training: its length, and the batch size that its learning rate is for."""

from __future__ import annotations

import logging
import math

from mmengine.config import Config
from mmengine.logging import print_log

__all__ = ['check_batch_size', 'check_schedule']

# Numbers of steps are estimated: samplers fill the last batch, or drop it.
_TOLERANCE = 0.95


def check_schedule(config: Config, images: int | None, ranks: int = 1) -> None:
    """Warn of schedulers that end before the training does, as after a change of its length alone.

    Args:
        config: The whole config.
        images: Number of training images. None if it is not known. Then epochs are not converted to iterations.
        ranks: Number of ranks.
    """
    loop, schedulers = config.get('train_cfg') or {}, config.get('param_scheduler') or []
    loader = config.get('train_dataloader') or {}
    batch = loader.get('batch_size')
    steps = math.ceil(images / (batch * ranks)) if images and batch else math.nan
    # MMEngine's limit of an epoch.
    steps = loader.get('num_batch_per_epoch') or steps
    epochs, iterations = loop.get('max_epochs'), loop.get('max_iters')
    # How long the training is, by what a scheduler counts.
    length = {True: epochs or (iterations or math.nan) / steps, False: iterations or (epochs or math.nan) * steps}
    ends = [
        (scheduler.get('end', math.inf), scheduler.get('by_epoch', True))
        for scheduler in (schedulers if isinstance(schedulers, list | tuple) else [schedulers])
        # These are warm-ups.
        if scheduler.get('type') not in ('LinearLR', 'ConstantLR')
    ]
    # A number that is not known compares as false.
    if not ends or not all(end < _TOLERANCE * length[by_epoch] for end, by_epoch in ends):
        return
    end, by_epoch = max(ends, key=lambda end: end[0] / length[end[1]])
    print_log(
        f'param_scheduler: the last scheduler ends at {"epoch" if by_epoch else "iteration"} {end} of '
        f'{length[by_epoch]:.0f}. From there on, the learning rate is constant. If that is not meant, set its end, and '
        'its milestones or T_max',
        logger='current',
        level=logging.WARNING,
    )


def check_batch_size(config: Config, ranks: int = 1, scaled: bool = False) -> None:
    """Warn if the learning rate is meant for another number of images, as with fewer GPUs than the recipe is for.

    Args:
        config: The whole config. Without ``auto_scale_lr.base_batch_size`` nothing is checked.
        ranks: Number of ranks.
        scaled: Whether ``--auto-scale-lr`` was given.
    """
    settings, batch = config.get('auto_scale_lr') or {}, (config.get('train_dataloader') or {}).get('batch_size')
    if not batch or not settings.get('base_batch_size'):
        return
    scaled = scaled or settings.get('enable', False)
    counts = (config.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    images, meant = ranks * batch * counts, ranks * batch if scaled else settings['base_batch_size']
    if images == meant:
        return
    accumulated = f', accumulative_counts={counts}' if counts > 1 else ''
    remedy = '--auto-scale-lr scales it'
    if counts > 1:
        remedy = 'Set optim_wrapper.optimizer.lr: --auto-scale-lr does not count accumulated batches'
    print_log(
        f'images per update of the weights: {images} (batch_size={batch}, ranks={ranks}{accumulated}), but the '
        f'learning rate is for {meant}. {remedy}',
        logger='current',
        level=logging.WARNING,
    )
