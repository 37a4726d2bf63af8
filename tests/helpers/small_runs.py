"""Trainings of a single number, which take milliseconds: for tests of hooks, loops and checkpoints."""

import itertools

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS, TRANSFORMS
from mmengine.runner import Runner

import mmgrc.engine  # noqa: F401  (registers the hooks)

# Runners of the same name share their message hub.
_number = itertools.count()


@DATASETS.register_module()
class Numbers(BaseDataset):
    """The numbers from 0, as images."""

    def __init__(self, count=5, **options):
        self.count = count
        super().__init__(**options)

    def load_data_list(self):
        return [{'number': number, 'img_path': f'/images/{number}.jpg'} for number in range(self.count)]


@TRANSFORMS.register_module()
class LoadNumber:
    """Read an image, with noise. One of them may be broken."""

    def __init__(self, broken=None):
        self.broken = broken

    def __call__(self, data):
        if data['number'] == self.broken:
            raise ValueError('broken')
        return {'inputs': torch.tensor([data['number'] + np.random.random()])}


@MODELS.register_module()
class OneWeight(BaseModel):
    """A model with one weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, inputs, mode='tensor'):
        out = self.weight * torch.stack(inputs)
        return {'loss': (out**2).mean()} if mode == 'loss' else list(out)


@METRICS.register_module()
class Planned(BaseMetric):
    """What each validation of a run gives."""

    def __init__(self, values):
        super().__init__()
        self.values = list(values)

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(self.values.pop(0))


def small_run(work_dir, hooks=(), checkpoint=None, validations=None, broken=None, epochs=2, loop=None, **options):
    """Create a runner. An epoch has 5 batches.

    Args:
        work_dir: The work dir.
        hooks: More hooks, as dictionaries or objects.
        checkpoint: Options of AtomicCheckpointHook.
        validations: The values of each validation. None: there is none.
        broken: The number whose image cannot be read.
        epochs: How many epochs to train.
        loop: Another ``train_cfg``.
        options: More of the config, merged into it.
    """

    def loader(sampler='DefaultSampler', **transform):
        return {
            'batch_size': 1,
            'num_workers': 0,
            'sampler': {'type': sampler, 'shuffle': True},
            'dataset': {'type': 'Numbers', 'pipeline': [{'type': 'LoadNumber', **transform}]},
        }

    config = Config(
        {
            'model': {'type': 'OneWeight'},
            'work_dir': str(work_dir),
            'train_dataloader': loader('InfiniteSampler' if loop else 'DefaultSampler', broken=broken),
            'train_cfg': loop or {'by_epoch': True, 'max_epochs': epochs},
            'optim_wrapper': {'type': 'OptimWrapper', 'optimizer': {'type': 'SGD', 'lr': 0.01}},
            'default_hooks': {'checkpoint': {'type': 'AtomicCheckpointHook', 'interval': 1, **(checkpoint or {})}},
            'randomness': {'seed': 0},
            'log_level': 'WARNING',
            'default_scope': 'mmengine',
            'experiment_name': f'small_run_{next(_number)}',
        }
    )
    if validations is not None:
        evaluator = {'type': 'Planned', 'values': validations}
        config.merge_from_dict({'val_dataloader': loader(), 'val_cfg': {}, 'val_evaluator': evaluator})
    config.merge_from_dict(options)
    runner = Runner.from_cfg(config)
    runner.register_custom_hooks(list(hooks))
    return runner


def train_with_workers(runner):
    """Train by iterations, and end the workers. The garbage collector would take 10 seconds for it."""
    try:
        runner.train()
    finally:
        batches = runner.train_loop.dataloader_iterator
        iterator = getattr(batches, '_batches', batches)._iterator
        if hasattr(iterator, '_shutdown_workers'):
            iterator._shutdown_workers()


def warnings_of(work_dir):
    """All that the runs in a work dir have logged from the level of warnings."""
    return '\n'.join(log.read_text() for log in sorted(work_dir.glob('*/*.log')))
