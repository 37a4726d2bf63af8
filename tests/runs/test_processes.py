"""No process outlives a training that was killed."""

import signal
import time
from pathlib import Path

import pytest

from tests.conftest import FAST, SHAPES_CONFIG
from tests.helpers.processes import Tool


def running(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_workers_of_a_killed_training_end(shapes, tmp_path):
    options = [*FAST, 'train_dataloader.num_workers=2', 'train_dataloader.persistent_workers=True']
    arguments = [SHAPES_CONFIG, '--work-dir', tmp_path / 'run', '--cfg-options', *options]
    training = Tool('train', *arguments, log=tmp_path / 'log', env={'SHAPES_ROOT': str(shapes)})
    training.wait_for('Epoch(train) [1][2/8]')
    pid = training.process.pid
    workers = Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
    assert len(workers) == 2
    # Full queues: the workers wait for the training to take their batches.
    training.send(signal.SIGSTOP)
    time.sleep(1)
    training.send(signal.SIGKILL)
    end = time.monotonic() + 15
    while time.monotonic() < end and any(map(running, workers)):
        time.sleep(0.1)
    assert not [worker for worker in workers if running(worker)]
    assert training.end() == -signal.SIGKILL
