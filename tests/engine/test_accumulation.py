"""Gradient accumulation: a stop waits for the update of the weights, and batches that are lost are counted."""

import shutil
import signal

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict

from mmgrc.engine.accumulation import pending_batches
from mmgrc.engine.stop_signal_hook import TrainingStopped
from tests.helpers.small_runs import small_run, warnings_of


def run(work_dir, counts, *hooks, resume=False):
    runner = small_run(
        work_dir,
        hooks=[{'type': 'ExactResumeHook'}, *hooks],
        resume=resume,
        optim_wrapper={'accumulative_counts': counts},
    )
    runner.train()
    return runner.model.weight.item()


class Signal(Hook):
    """Sends the signal during an iteration."""

    def __init__(self, iteration):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.iteration:
            signal.raise_signal(signal.SIGUSR1)


@pytest.fixture(autouse=True)
def _handler():
    """A run that is stopped does not restore the handler of the signal. Its process ends."""
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize(('asked', 'stopped'), [(1, 3), (3, 3), (4, 6), (5, 6), (10, 10)])
def test_stop_waits_for_the_update(tmp_path, asked, stopped):
    """With 3 batches for an update. The 10th and last iteration updates with what is left."""
    with pytest.raises(TrainingStopped, match=f'stopped after iteration {stopped};'):
        run(tmp_path / 'run', 3, {'type': 'StopSignalHook'}, Signal(asked))
    checkpoint = torch.load(tmp_path / 'run/stopped.pth')
    assert checkpoint['exact_resume']['pending_batches'] == 0
    assert run(tmp_path / 'run', 3, resume=True) == run(tmp_path / 'whole', 3)
    assert 'batches that are lost' not in warnings_of(tmp_path / 'run')


@pytest.mark.parametrize(('counts', 'lost'), [(1, 0), (2, 1), (3, 2), (5, 0)])
def test_lost_batches_are_counted(tmp_path, counts, lost):
    """At the end of the first of two epochs with 5 batches."""
    whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
    weight = run(whole, counts)
    resumed.mkdir()
    shutil.copy2(whole / 'epoch_1.pth', resumed)
    (resumed / 'last_checkpoint').write_text(str(resumed / 'epoch_1.pth'))
    assert (run(resumed, counts, resume=True) == weight) == (lost == 0)
    message = f'Accumulated batches that are lost: {lost}.'
    assert (message in warnings_of(resumed)) == (lost > 0)


def test_pending_batches_of_several_optimizers():
    wrappers = [
        OptimWrapper(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1), accumulative_counts=counts)
        for counts in (1, 2, 3)
    ]
    joined = OptimWrapperDict(**{f'optimizer{number}': wrapper for number, wrapper in enumerate(wrappers)})
    found = []
    for _ in range(6):
        for wrapper in wrappers:
            wrapper.update_params(wrapper.optimizer.param_groups[0]['params'][0].sum())
        found.append((*(pending_batches(wrapper) for wrapper in wrappers), pending_batches(joined)))
    assert found == [(0, 1, 1, 1), (0, 0, 2, 2), (0, 1, 0, 1), (0, 0, 1, 1), (0, 1, 2, 2), (0, 0, 0, 0)]
