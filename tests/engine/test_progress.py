"""The line of progress, on a pseudo-terminal and in a file, and early stopping beside our hooks."""

import os
import pty
import re
import sys

import pytest
import torch
from mmengine.hooks import EarlyStoppingHook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmgrc.engine import AtomicCheckpointHook, ExactResumeHook, GRCMonitorHook, ProgressHook
from tests.engine.test_monitor import batches, make_model
from tests.helpers.processes import run_ranks
from tests.helpers.small_runs import Planned

STEPS = 4


class Printing(Planned):
    """An evaluator that prints."""

    def compute_metrics(self, results):
        print('an evaluator prints')
        return super().compute_metrics(results)


def train(work_dir, hooks, epochs=1, scores=(), resume=False):
    images, model = batches(STEPS), make_model()
    # A detector gives a list of predictions.
    model.val_step = lambda batch: [0]
    validation = {}
    if scores:
        validation = {'val_dataloader': DataLoader(images[:3], batch_size=3), 'val_cfg': {}}
        validation['val_evaluator'] = [Printing({'mAP': score} for score in scores)]
    runner = Runner(
        model,
        str(work_dir),
        train_dataloader=DataLoader(images, batch_size=3, shuffle=True),
        train_cfg={'by_epoch': True, 'max_epochs': epochs},
        optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.1}},
        default_hooks={'logger': {'type': 'LoggerHook', 'interval': 2}, 'checkpoint': AtomicCheckpointHook(interval=1)},
        custom_hooks=hooks,
        default_scope='mmengine',
        experiment_name=f'{work_dir.parent.name}_{work_dir.name}_{resume}',
        randomness={'seed': 3},
        resume=resume,
        **validation,
    )
    runner.train()
    return runner


def train_with_output(rank, work_dir, terminal, interval=0):
    """Train with standard output on a pseudo-terminal or in a file, and return what was written to it."""
    saved, stdout = os.dup(1), sys.stdout
    if terminal:
        reader, writer = pty.openpty()
    else:
        writer = os.open(work_dir.parent / f'output-{rank}', os.O_RDWR | os.O_CREAT)
        reader = os.dup(writer)
    os.dup2(writer, 1)
    sys.stdout = os.fdopen(writer, 'w', buffering=1)
    try:
        train(work_dir, [ProgressHook(interval)], scores=[0.5])
        print('the end')
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        sys.stdout = stdout
    if not terminal:
        os.lseek(reader, 0, os.SEEK_SET)
    content = b''
    while b'the end' not in content:
        content += os.read(reader, 65536)
    return content.decode()


def without_colours(text):
    return re.sub(r'\x1b\[[0-9;]*m', '', text)


def log_lines(work_dir):
    (log,) = work_dir.glob('*/*.log')
    return log.read_text().splitlines()


def on_screen(output):
    """The lines that remain on a terminal: what precedes the last return of the cursor in a line was erased."""
    lines = without_colours(output).replace('\r\n', '\n').split('\n')
    return [line.rsplit('\r\x1b[K', 1)[-1] for line in lines]


def test_terminal(tmp_path):
    (output,) = run_ranks(train_with_output, 1, tmp_path, tmp_path / 'run', True)
    shown = re.findall(r'━{12} (.*?)\r', without_colours(output))
    assert len(shown) == STEPS
    for step, line in enumerate(shown, start=1):
        assert re.fullmatch(rf'epoch 1/1  iter {step}/4  loss \d+\.\d{{4}}  left \d:\d\d:\d\d', line), line
    # Nothing of it remains, and the log's lines are those of the file.
    remaining = on_screen(output)
    assert not any('━' in line or '\r' in line for line in remaining)
    shown, stored = (
        # In the file, MMEngine writes the year as well.
        [re.sub(r'^(\d{4}/)?', '', line) for line in lines if 'Epoch(' in line]
        for lines in (remaining, log_lines(tmp_path / 'run'))
    )
    assert len(stored) == 3
    assert shown == stored
    assert 'an evaluator prints' in remaining


def test_not_more_often_than_asked(tmp_path):
    (output,) = run_ranks(train_with_output, 1, tmp_path, tmp_path / 'run', True, 1000)
    assert without_colours(output).count('━' * 12) == 1


def test_file(tmp_path):
    (output,) = run_ranks(train_with_output, 1, tmp_path, tmp_path / 'run', False)
    assert 'Epoch(train)' in output
    for text in (output, '\n'.join(log_lines(tmp_path / 'run'))):
        assert '━' not in text
        assert '\r' not in text
        assert '\x1b[K' not in text


def test_first_rank_alone(tmp_path):
    outputs = run_ranks(train_with_output, 2, tmp_path, tmp_path / 'run', True)
    assert ['━' in output for output in outputs] == [True, False]
    assert '\x1b[K' not in outputs[1]


@pytest.mark.parametrize('interval', [-1, float('nan'), '1', None, True])
def test_bad_interval(interval):
    with pytest.raises(ValueError, match=r'ProgressHook: interval=.*give a number of seconds from 0 up'):
        ProgressHook(interval)


def hooks():
    return [
        ExactResumeHook(),
        GRCMonitorHook(interval=1),
        EarlyStoppingHook(monitor='mAP', rule='greater', min_delta=0.01, patience=2),
    ]


def test_early_stopping_and_what_resumes_from_it(tmp_path):
    scores = [0.2, 0.3, 0.3, 0.3, 0.4]
    stopped = train(tmp_path / 'run', hooks(), epochs=5, scores=scores)
    # No improvement by 0.01 in two validations after the second.
    assert stopped.epoch == 4
    assert sorted(path.name for path in (tmp_path / 'run').glob('*.pth')) == [f'epoch_{n}.pth' for n in range(1, 5)]
    assert any('did not improve in the last 2 records' in line for line in log_lines(tmp_path / 'run'))

    # Trained on, it equals a run that never stopped, bit for bit.
    train(tmp_path / 'run', [ExactResumeHook()], epochs=5, scores=[0.4], resume=True)
    train(tmp_path / 'unbroken', [ExactResumeHook()], epochs=5, scores=scores)
    found, wanted = (torch.load(tmp_path / name / 'epoch_5.pth')['state_dict'] for name in ('run', 'unbroken'))
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key
