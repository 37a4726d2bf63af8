"""Errors of loading and augmentation that name the image."""

from __future__ import annotations

from collections.abc import Iterator

from mmengine.dataset import BaseDataset, Compose
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.utils.data import Dataset

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
    """

    # After hooks that replace the pipeline between epochs.
    priority = 'LOW'

    def before_train_epoch(self, runner: Runner) -> None:
        """Name the images of the training."""
        _name_images(runner.train_dataloader.dataset)

    def before_val_epoch(self, runner: Runner) -> None:
        """Name the images of the validation."""
        _name_images(runner.val_dataloader.dataset)

    def before_test_epoch(self, runner: Runner) -> None:
        """Name the images of the test."""
        _name_images(runner.test_dataloader.dataset)


def _name_images(dataset: Dataset) -> None:
    for inner in _unwrapped(dataset):
        if type(inner.pipeline) is Compose:
            inner.pipeline = _NamingPipeline(inner.pipeline)


def _unwrapped(dataset: Dataset) -> Iterator[BaseDataset]:
    """The data sets below wrappers."""
    if isinstance(dataset, BaseDataset):
        yield dataset
    for inner in [getattr(dataset, 'dataset', None), *getattr(dataset, 'datasets', [])]:
        if isinstance(inner, Dataset):
            yield from _unwrapped(inner)
