"""Resuming that equals an uninterrupted run: random states, seeds, and the position in the epoch."""

from __future__ import annotations

import functools
import itertools
import logging
import random
from collections.abc import Iterator

import numpy as np
import torch
from mmengine.dataset import worker_init_fn
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import Sampler

from .accumulation import pending_batches
from .loaders import restart_loader, sampler_of, seeds_workers

__all__ = ['ExactResumeHook', 'random_state', 'set_random_state']

_KEY = 'exact_resume'
# Worker seeds of two epochs differ by more than those of two ranks.
_EPOCH_STRIDE = 100003


def random_state() -> dict:
    """The state of this process's generators: Python's, NumPy's, torch's, and its CUDA device's if it has one.

    Returns:
        Only tensors and numbers, so that torch can load it with ``weights_only=True``.
    """
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached_gauss = np.random.get_state()
    return {
        'python': {'version': version, 'words': torch.tensor(words), 'gauss': gauss},
        'numpy': {
            'keys': torch.from_numpy(keys.astype(np.int64)),
            'position': int(position),
            'has_gauss': int(has_gauss),
            'cached_gauss': float(cached_gauss),
        },
        'torch': torch.get_rng_state(),
        'cuda': torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: dict) -> None:
    """Restore this process's generators to a state from :func:`random_state`."""
    python, numpy = state['python'], state['numpy']
    random.setstate((python['version'], tuple(python['words'].tolist()), python['gauss']))
    keys = numpy['keys'].cpu().numpy().astype(np.uint32)
    np.random.set_state(('MT19937', keys, numpy['position'], numpy['has_gauss'], numpy['cached_gauss']))
    torch.set_rng_state(state['torch'].cpu())
    if state['cuda'] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())


class _RestOfEpoch(Sampler):
    """A batch sampler that skips, once, the batches from before an interruption.

    Args:
        batches: The batch sampler of the loader.
        done: How many batches of the epoch to skip.
        state: Random state to restore after the loader has drawn its own numbers, before it loads the first batch.
    """

    def __init__(self, batches: Sampler, done: int, state: dict) -> None:
        self.batches = batches
        self.done = done
        self.state = state

    def __getattr__(self, name: str) -> object:
        # MMEngine's hooks look through to the sampler.
        if name == 'batches':
            raise AttributeError(name)
        return getattr(self.batches, name)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        done, state, self.done, self.state = self.done, self.state, 0, None
        if state is not None:
            set_random_state(state)
        yield from itertools.islice(self.batches, done, None)


class _Replayed:
    """The batches of a training by iterations, from the first one.

    MMEngine skips the batches from before an interruption by loading them again.

    Args:
        batches: MMEngine's iterator over all batches.
        done: How many batches were done before the interruption.
        state: Random state to restore after these.
    """

    def __init__(self, batches: Iterator, done: int, state: dict) -> None:
        self._batches = batches
        self._left = done
        self._state = state

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> object:
        if self._left == 0:
            set_random_state(self._state)
        self._left -= 1
        return next(self._batches)


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Save with each checkpoint what a resumed run needs to equal the uninterrupted one, for each rank.

    MMEngine saves none of it. The hook saves the states of the random generators and the sampler's seed, which MMEngine
    would otherwise draw again if the config has none. For a checkpoint in mid-epoch, it also saves how many batches of
    the epoch are done. To make this exact:

    - Validation restores the generators, since a resumed run does not repeat it.
    - Each epoch has its own worker processes with their own seeds. Otherwise the state of the workers would be lost.

    After a stop in mid-epoch, the workers for the rest of that epoch start again with its seeds. The data order is that
    of the uninterrupted run, but the augmentations are not. With ``num_workers=0`` the augmentations are the same, too.
    In a training by iterations (``IterBasedTrainLoop``), MMEngine loads the batches from before the interruption again,
    and the augmentations are always the same.

    Accumulated gradients (``accumulative_counts``) are large and differ between the ranks. They are not saved, so a
    checkpoint between two updates of the weights loses its pending batches. Resuming from it is a warning. It is
    written at the end of an epoch whose length is not a multiple of ``accumulative_counts``.
    """

    # Before the checkpoint of the same iteration is written.
    priority = 'LOW'

    def __init__(self) -> None:
        self._loaded: dict | None = None
        self._collected: dict | None = None
        self._before_val: dict | None = None
        # In the current epoch: the batches done before an interruption, and all batches done.
        self._batches_before = 0
        self._batches_done = 0

    def collect(self, runner: Runner, iteration: int) -> None:
        """Gather every rank's state for the next checkpoint. Call it on all ranks.

        Args:
            runner: The runner of the training.
            iteration: Number of completed iterations, as in the checkpoint's ``meta``.
        """
        self._collected = {
            'iter': iteration,
            'batches_done': self._batches_done,
            'pending_batches': pending_batches(runner.optim_wrapper),
            'epoch': _describe_epoch(runner),
            'sampler_seed': getattr(sampler_of(runner.train_dataloader), 'seed', None),
            'ranks': all_gather_object(random_state()),
        }

    def before_train(self, runner: Runner) -> None:
        """Restore the state of the checkpoint that the run resumes from, if any."""
        # load_from without --resume starts a new run.
        if self._loaded is not None and runner.iter > 0:
            # Older versions did not count them.
            if lost := self._loaded.get('pending_batches', 0):
                runner.logger.warning(
                    'The checkpoint was written between two updates of the weights. Accumulated batches that are '
                    f'lost: {lost}. The resumed run is valid, but does not equal the uninterrupted one. Checkpoints '
                    'after a multiple of accumulative_counts iterations lose none.'
                )
            self._restore(runner, self._loaded)
        self._loaded = None

    def _restore(self, runner: Runner, saved: dict) -> None:
        if len(saved['ranks']) != get_world_size():
            runner.logger.warning(
                f'The checkpoint is of {len(saved["ranks"])} ranks, this run has {get_world_size()}. Its random state '
                'and data order differ from those of the interrupted run, and the epoch starts from its first batch.'
            )
            return
        loader, done, state = runner.train_dataloader, saved['batches_done'], saved['ranks'][get_rank()]
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            # MMEngine created the loader and its workers before it read the checkpoint, and with it the seed.
            loop = runner.train_loop
            restart_loader(runner, loop, saved['sampler_seed'])
            loop.dataloader_iterator = _Replayed(loop.dataloader_iterator, runner.iter, state)
            return
        sampler = sampler_of(loader)
        if saved['sampler_seed'] is not None and hasattr(sampler, 'seed'):
            sampler.seed = saved['sampler_seed']
        changed = _what_changed(saved, _describe_epoch(runner))
        if changed:
            restart = f' Epoch {runner.epoch + 1} starts from its first batch.' if done else ''
            runner.logger.warning(
                f'The checkpoint was written with other batches ({changed}). The run continues, but does not equal the '
                f'uninterrupted one.{restart}'
            )
        if changed or not done:
            set_random_state(state)
            return
        runner.logger.info(f'Continuing after batch {done} of {len(loader)} of epoch {runner.epoch + 1}')
        self._batches_before = self._batches_done = done
        # A loader refuses a new batch sampler after its creation. Nothing has been drawn from this one yet.
        vars(loader)['batch_sampler'] = _RestOfEpoch(loader.batch_sampler, done, state)

    def before_train_epoch(self, runner: Runner) -> None:
        """Start new worker processes for the epoch, with seeds that depend on the epoch."""
        loader = runner.train_dataloader
        if loader.num_workers == 0 or not seeds_workers(loader):
            return
        seed = (runner.seed + runner.epoch * _EPOCH_STRIDE) % 2**31
        loader.worker_init_fn = functools.partial(worker_init_fn, **{**loader.worker_init_fn.keywords, 'seed': seed})
        # Persistent workers of the previous epoch end with their iterator.
        loader._iterator = None

    def after_train_epoch(self, runner: Runner) -> None:
        """Gather the state for a checkpoint at the end of the epoch."""
        # The next epoch starts at its first batch.
        self._batches_before = self._batches_done = 0
        self.collect(runner, runner.iter)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None
    ) -> None:
        """Count the batch, and gather the state if a checkpoint by iterations follows."""
        self._batches_done = self._batches_before + batch_idx + 1
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook) and not hook.by_epoch:
                due = hook.every_n_train_iters(runner, hook.interval, hook.save_begin)
                if due or (hook.save_last and self.is_last_train_iter(runner)):
                    self.collect(runner, runner.iter + 1)
                    return

    def before_val(self, runner: Runner) -> None:
        """Store the random state, to restore it when validation ends."""
        self._before_val = random_state()

    def after_val(self, runner: Runner) -> None:
        """Restore the random state from before validation."""
        if self._before_val is not None:
            set_random_state(self._before_val)
            self._before_val = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the state to the checkpoint, if it was gathered at the same iteration."""
        if self._collected is not None and self._collected['iter'] == checkpoint['meta']['iter']:
            checkpoint[_KEY] = self._collected

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the state until the loaders and the seed are ready."""
        self._loaded = checkpoint.get(_KEY)
        if self._loaded is None and runner._resume:
            runner.logger.log(
                logging.WARNING,
                'The checkpoint has no random state (it was written without ExactResumeHook). The resumed run is '
                'valid, but does not equal the uninterrupted one bit for bit.',
            )


def _describe_epoch(runner: Runner) -> dict[str, int]:
    """What an epoch consists of. A position in an epoch is only valid in an epoch of the same kind."""
    loader = runner.train_dataloader
    if not isinstance(runner.train_loop, EpochBasedTrainLoop):
        return {}
    return {
        'batches': len(loader),
        'images': len(loader.dataset),
        'batch size': getattr(loader.batch_sampler, 'batch_size', None) or 0,
    }


def _what_changed(saved: dict, epoch: dict[str, int]) -> str:
    """How the epochs of a checkpoint differ from those of this run. Empty if they do not."""
    then = saved.get('epoch')
    if then is None:
        # An older version did not store it, and its count can be wrong.
        done, batches = saved['batches_done'], epoch['batches']
        return '' if 0 <= done <= batches else f'{done} batches done of an epoch that now has {batches}'
    # Training by iterations has no epochs to describe.
    differing = [name for name in epoch if then.get(name) != epoch[name]]
    return ', '.join(f'{name}: {then.get(name, "unknown")}, now {epoch[name]}' for name in differing)
