"""The protection of a run's work dir."""

import fcntl
import os

import pytest

from mmgrc.runs.error import InputError
from mmgrc.studies import read_table, run_study
from mmgrc.studies.training import Training, _drop_unvalidated


@pytest.fixture
def run(write_table, tmp_path):
    return read_table(write_table()).runs(tmp_path / 'out')[0]


@pytest.mark.parametrize(
    ('newest', 'log_is_newer', 'kept'),
    [('epoch_2.pth', True, True), ('epoch_2.pth', False, False), ('stopped.pth', False, True)],
)
def test_checkpoint_without_its_validation(run, newest, log_is_newer, kept):
    log = run.work_dir / '20260101_000000' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    pointer = run.work_dir / 'last_checkpoint'
    for path, time in (
        (run.work_dir / 'epoch_1.pth', 1),
        (run.work_dir / newest, 2),
        (log, 3 if log_is_newer else 1.5),
    ):
        path.write_text('')
        os.utime(path, (time, time))
    pointer.write_text(newest)
    _drop_unvalidated(run)
    assert (run.work_dir / newest).exists() == pointer.exists() == kept
    assert (run.work_dir / 'epoch_1.pth').exists()


def test_run_of_another_process_is_left_alone(run):
    run.work_dir.mkdir(parents=True)
    with (run.work_dir / '.lock').open('w') as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            Training(run, {})
    assert [path.name for path in run.work_dir.iterdir()] == ['.lock']


def test_folder_of_another_table_is_refused(write_table, tmp_path, monkeypatch):
    # A training that ends immediately.
    monkeypatch.setenv('PYTHON', 'true')
    study = read_table(write_table())
    assert run_study(study, tmp_path / 'out') == 1
    assert (tmp_path / 'out' / 'runs.csv').read_text().count('there is no training log') == 4
    changed = read_table(write_table(cfg_options={'train_cfg.max_epochs': 3}))
    with pytest.raises(InputError, match=r"seed_0 was made with cfg_options=.*'train_cfg.max_epochs': '3'.*remove"):
        run_study(changed, tmp_path / 'out')
