"""Errors of loading and augmentation that name the image."""

from __future__ import annotations

from collections.abc import Iterator

from mmengine.dataset import BaseDataset, Compose
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import Dataset

from .exact_resume_hook import random_state, set_random_state
from .loaders import restart_loader, sampler_of, seeds_workers

__all__ = ['DataError', 'DataErrorHook']


class DataError(RuntimeError):
    """An image cannot be used. The message names the image."""


class _NamingPipeline(Compose):
    """The transforms of a pipeline, with the image's path in their errors.

    Args:
        pipeline: The pipeline whose transforms are used.
    """

    def __init__(self, pipeline: Compose) -> None:
        self.transforms = pipeline.transforms

    def __call__(self, data: dict) -> dict | None:
        path = data.get('img_path')
        try:
            return super().__call__(data)
        except DataError:
            raise
        except Exception as error:
            # A transform may raise any error. OpenCV's messages have several lines.
            reason = ' '.join(f'{type(error).__name__}: {error}'.split())
            raise DataError(f'the image {path} cannot be used: {reason}') from error


@HOOKS.register_module()
class DataErrorHook(Hook):
    """Raise :class:`DataError` with the image's path if a transform fails in a data set's pipeline.

    Without this hook, the traceback of a worker process names the transform at best, and never the image.

    In a training by iterations (``IterBasedTrainLoop``), MMEngine starts the workers before any hook runs. So this hook
    starts them again, with the same data order and random numbers. It leaves workers with another ``worker_init_fn``
    than MMEngine's alone, and their errors do not name the image.
    """

    # After hooks that replace the pipeline between epochs.
    priority = 'LOW'

    def before_run(self, runner: Runner) -> None:
        """Name the images of a training by iterations in its workers, which have the data set already."""
        # Before a validation or a test, the property would create the loop of the training.
        loop = runner._train_loop
        if not isinstance(loop, IterBasedTrainLoop):
            return
        loader = loop.dataloader
        started = loader.num_workers > 0 and seeds_workers(loader) and 'train_dataloader' in runner.cfg
        if _name_images(loader.dataset) and started:
            state = random_state()
            restart_loader(runner, loop, getattr(sampler_of(loader), 'seed', None))
            set_random_state(state)

    def before_train_epoch(self, runner: Runner) -> None:
        """Name the images of the training."""
        _name_images(runner.train_dataloader.dataset)

    def before_val_epoch(self, runner: Runner) -> None:
        """Name the images of the validation."""
        _name_images(runner.val_dataloader.dataset)

    def before_test_epoch(self, runner: Runner) -> None:
        """Name the images of the test."""
        _name_images(runner.test_dataloader.dataset)


def _name_images(dataset: Dataset) -> bool:
    """Replace the pipelines of a data set. False if none was left to replace."""
    plain = [inner for inner in _unwrapped(dataset) if type(inner.pipeline) is Compose]
    for inner in plain:
        inner.pipeline = _NamingPipeline(inner.pipeline)
    return bool(plain)


def _unwrapped(dataset: Dataset) -> Iterator[BaseDataset]:
    """The data sets below wrappers."""
    if isinstance(dataset, BaseDataset):
        yield dataset
    for inner in [getattr(dataset, 'dataset', None), *getattr(dataset, 'datasets', [])]:
        if isinstance(inner, Dataset):
            yield from _unwrapped(inner)
