"""Loaders of training data that are created again, since MMEngine starts their workers before any hook."""

from __future__ import annotations

import functools

from mmengine.dataset import worker_init_fn
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader, Dataset, Sampler

__all__ = ['restart_loader', 'sampler_of', 'seeds_workers']


class _Uncopied:
    """A data set in a config that MMEngine copies. The copy is the data set itself.

    Args:
        dataset: The data set.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __deepcopy__(self, memo: dict) -> Dataset:
        return self.dataset


def sampler_of(loader: DataLoader) -> Sampler:
    """The sampler of images, which a batch sampler may contain."""
    return getattr(loader.batch_sampler, 'sampler', loader.sampler)


def seeds_workers(loader: DataLoader) -> bool:
    """Whether the random numbers of a loader's workers depend on its seed alone, by MMEngine's own function."""
    start = loader.worker_init_fn
    return isinstance(start, functools.partial) and start.func is worker_init_fn


def restart_loader(runner: Runner, loop: IterBasedTrainLoop, sampler_seed: int | None) -> None:
    """Create the loader of a training by iterations again, with samplers and workers that start from the first batch.

    The data set stays, with all changes since the workers got it. This draws random numbers of this process.

    Args:
        runner: The runner of the training.
        loop: Its loop, which has not begun. It gets the new loader.
        sampler_seed: Seed of the sampler. None: the one that MMEngine gives it.
    """
    kind, dataset = type(loop.dataloader_iterator), loop.dataloader.dataset
    # The workers end with their iterator, which the loader has too if they are persistent.
    loop.dataloader_iterator = loop.dataloader._iterator = None
    loop.dataloader = runner.build_dataloader(
        {**runner.cfg.train_dataloader, 'dataset': _Uncopied(dataset)},
        seed=runner.seed,
        diff_rank_seed=runner.cfg.get('randomness', {}).get('diff_rank_seed', False),
    )
    sampler = sampler_of(loop.dataloader)
    if sampler_seed is not None and hasattr(sampler, 'seed'):
        sampler.seed = sampler_seed
    loop.dataloader_iterator = kind(loop.dataloader)
