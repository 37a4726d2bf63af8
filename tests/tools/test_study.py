"""`tools/study.py` as a user runs it, with small detectors and few images."""

import csv
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import NARROW, REPOSITORY, SHAPES_CONFIG

EPOCHS, STEPS = 2, 4  # 8 images, 2 at a time
TABLE = {
    'config': SHAPES_CONFIG,
    'cfg_options': [
        *NARROW,
        f'train_cfg.max_epochs={EPOCHS}',
        'train_cfg.val_interval=1',
        'train_dataloader.dataset.indices=8',
        'val_dataloader.dataset.indices=2',
    ],
    'env': {'SHAPES_ROOT': '{{$STUDY_SHAPES}}', 'OMP_NUM_THREADS': 1},
    'seeds': [3, 4],
    'reference': 'plain',
    'arms': [
        {'name': 'plain', 'cfg_options': {'model': {'backbone': {'grc': {'stages': '()'}}}}},
        {'name': 'broken', 'cfg_options': {'train_dataloader.dataset.ann_file': 'nothing.json'}},
        {'name': 'both'},
    ],
}
# In one process of pytest-xdist: they share a study.
pytestmark = pytest.mark.xdist_group('study')
# As the last arm, for two ranks, whose steps then have as many images as those of one process.
HALF_BATCH = {'name': 'both', 'cfg_options': {'train_dataloader.batch_size': 1}}


def write(path, **entries):
    path.write_text(yaml.safe_dump({**TABLE, **entries}, sort_keys=False))
    return path


@pytest.fixture(scope='module')
def environment(shapes):
    return {**os.environ, 'STUDY_SHAPES': str(shapes), 'CUDA_VISIBLE_DEVICES': '', 'COLUMNS': '80'}


@pytest.fixture(scope='module')
def study(python, environment):
    """Return a function that runs the tool. The tool and its trainings start without import time."""

    def run(*args, **env):
        return subprocess.run(
            [str(python), 'tools/study.py', *map(str, args)],
            cwd=REPOSITORY,
            env={**environment, 'PYTHON': str(python), **env},
            capture_output=True,
            text=True,
            timeout=500,
        )

    return run


@pytest.fixture(scope='module')
def done(study, tmp_path_factory):
    """A study with an arm that fails: its table, its folder, and the result of the tool."""
    folder = tmp_path_factory.mktemp('study')
    table = write(folder / 'tiny.yml', keep_checkpoints=True)
    return table, folder / 'work', study(table, '--work-dir', folder / 'work', '--jobs', 2)


def rows(work_dir):
    return {(row['arm'], row['seed']): row for row in csv.DictReader((work_dir / 'runs.csv').open())}


def losses(work_dir):
    lines = [line for file in sorted(work_dir.glob('*/vis_data/scalars.json')) for line in file.open()]
    return {r['step']: r['loss'] for r in map(json.loads, lines) if 'loss' in r}


def test_runs_and_compares_what_can_be_trained(done):
    table, work_dir, result = done
    assert result.returncode == 1, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == '6 runs, 0 of them already finished'
    for arm in ('plain', 'both'):
        for seed in (3, 4):
            (line,) = [line for line in lines if f'] {arm}, seed {seed}: ' in line]
            assert ': finished, bbox_mAP 0.' in line
            folder = work_dir / arm / f'seed_{seed}'
            assert (folder / f'epoch_{EPOCHS}.pth').exists()
            assert sorted(losses(folder)) == list(range(1, EPOCHS * STEPS + 1))
            validations = [
                record['coco/bbox_mAP']
                for file in folder.glob('*/vis_data/scalars.json')
                for record in map(json.loads, file.open())
                if 'coco/bbox_mAP' in record
            ]
            row = rows(work_dir)[arm, str(seed)]
            assert row['status'] == 'finished'
            assert float(row['coco/bbox_mAP']) == validations[-1]
            assert float(row['coco/bbox_mAP_best']) == max(validations)
            assert float(row['steps_per_second']) > 0
            assert float(row['wall_time_s']) > 0
    # Seeds and arms reach the training.
    assert losses(work_dir / 'both/seed_3') != losses(work_dir / 'both/seed_4')
    assert losses(work_dir / 'both/seed_3') != losses(work_dir / 'plain/seed_3')

    # The failed arm is reported, and the others continued.
    assert result.stdout.count('broken, seed 3: failed: exit code 1, took') == 1
    assert 'nothing.json' in result.stdout.split('broken, seed 3: failed')[1]
    assert rows(work_dir)['broken', '4']['status'] == 'failed'
    assert f'{table}: 4 of 6 runs are finished.' in lines
    assert (work_dir / 'summary.md').read_text().strip() in result.stdout
    assert (work_dir / 'summary.png').exists()
    assert 'Traceback' not in result.stdout + result.stderr


def test_what_is_finished_is_not_done_again(study, done, tmp_path):
    """The broken arm is removed from the table, and the checkpoints are deleted."""
    table, work_dir, _ = done
    work_dir = Path(shutil.copytree(work_dir, tmp_path / 'work'))
    before = (work_dir / 'both/seed_3/train.log').read_bytes()
    table = write(tmp_path / 'tiny.yml', arms=[TABLE['arms'][0], TABLE['arms'][2]])
    result = study(table, '--work-dir', work_dir)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith('4 runs, 4 of them already finished\n')
    assert (work_dir / 'both/seed_3/train.log').read_bytes() == before
    assert not list(work_dir.glob('both/*/*.pth'))
    assert len(rows(work_dir)) == 4

    summary = study(table, '--work-dir', work_dir, '--summary')
    assert summary.stdout.strip() == (work_dir / 'summary.md').read_text().strip()
    other = study(table, '--work-dir', work_dir, '--summary', '--reference', 'both')
    assert 'difference from both' in other.stdout


def test_killed_in_the_last_validation(study, done, tmp_path):
    """The last checkpoint exists and its validation does not, so the last epoch is repeated."""
    table, work_dir, _ = done
    run = Path(shutil.copytree(work_dir / 'both/seed_3', tmp_path / 'work/both/seed_3'))
    (run / 'result.json').unlink()
    (scalars,) = run.glob('*/vis_data/scalars.json')
    scalars.write_text(''.join(scalars.read_text().splitlines(keepends=True)[:-1]))
    (run / f'epoch_{EPOCHS}.pth').touch()
    result = study(table, '--work-dir', tmp_path / 'work', '--run', 2)
    assert result.returncode == 0, result.stdout + result.stderr
    assert 'both, seed 3: finished' in result.stdout
    assert f'resumed epoch: {EPOCHS - 1}, iter: {(EPOCHS - 1) * STEPS}' in (run / 'train.log').read_text()
    again, unbroken = (json.loads((p / 'result.json').read_text()) for p in (run, work_dir / 'both/seed_3'))
    assert again['final'] == unbroken['final']
    assert again['wall_time'] > unbroken['wall_time']
    assert losses(run) == losses(work_dir / 'both/seed_3')
    # A task of a job array does not write the summary. A later call does.
    assert not (tmp_path / 'work/runs.csv').exists()


@pytest.fixture(scope='module')
def start(python, environment):
    """Return a function that starts the tool, in which ranks are new processes or forks."""

    def run(table, work_dir, *options, new_ranks=False):
        return subprocess.Popen(
            [str(python), 'tools/study.py', str(table), '--work-dir', str(work_dir), *options],
            cwd=REPOSITORY,
            # torchrun starts the ranks with PYTHON_EXEC.
            env={**environment, 'PYTHON': str(python), **({} if new_ranks else {'PYTHON_EXEC': str(python)})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return run


def wait_for(words, log, process):
    end = time.monotonic() + 240
    while not log.exists() or words not in log.read_text():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.02)


def trainings(work_dir):
    """Return the ids of the processes that train in a work dir."""
    found = []
    for folder in Path('/proc').glob('[0-9]*'):
        try:
            command = (folder / 'cmdline').read_text().split('\0')
        except OSError:
            continue
        # The launcher of ranks names the tool by its whole path, as do the ranks.
        if str(work_dir) in command and any(word.endswith('tools/train.py') for word in command):
            found.append(int(folder.name))
    return found


@pytest.fixture(params=[1, 2], ids=['one process', 'two ranks'])
def unbroken(request, done, start, tmp_path):
    """The folder of an uninterrupted run, its arm, and its number of ranks. A step has two images."""
    if request.param == 1:
        return done[1] / 'both/seed_3', {'name': 'both'}, 1
    table = write(tmp_path / 'tiny.yml', arms=[HALF_BATCH], seeds=[3], reference='both')
    tool = start(table, tmp_path / 'unbroken', '--gpus-per-run', '2')
    output, _ = tool.communicate(timeout=300)
    assert tool.returncode == 0, output
    return tmp_path / 'unbroken/both/seed_3', HALF_BATCH, 2


def test_stopped_and_killed_it_goes_on(unbroken, start, tmp_path):
    """After SIGTERM in the first epoch and SIGKILL in the second, the run ends like an uninterrupted one."""
    unbroken, arm, ranks = unbroken
    table = write(tmp_path / 'tiny.yml', arms=[arm], seeds=[3], reference='both')
    run = tmp_path / 'work/both/seed_3'
    options = ['--gpus-per-run', str(ranks)]
    tool = start(table, tmp_path / 'work', *options)
    wait_for(f'Epoch(train) [1][1/{STEPS}]', run / 'train.log', tool)
    tool.send_signal(signal.SIGTERM)
    output, _ = tool.communicate(timeout=100)
    assert tool.returncode == 128 + signal.SIGTERM
    assert 'study: stopped. The same command resumes it.' in output
    assert not trainings(run)
    assert (run / 'stopped.pth').exists()
    assert not (run / 'result.json').exists()
    assert len(losses(run)) < STEPS

    # The forked ranks have another parent than the launcher, so that its end does not end them.
    tool = start(table, tmp_path / 'work', *options, new_ranks=True)
    wait_for(f'Epoch(train) [2][1/{STEPS}]', run / 'train.log', tool)
    assert f'GPU number: {ranks}' in (run / 'train.log').read_text()
    # Several ranks and their launcher.
    assert len(trainings(run)) == (1 if ranks == 1 else ranks + 1)
    tool.kill()
    tool.communicate()
    end = time.monotonic() + 30
    while trainings(run):
        assert time.monotonic() < end, 'the training outlives the tool'
        time.sleep(0.05)
    # Killed, and not ended by itself.
    assert not (run / f'epoch_{EPOCHS}.pth').exists()
    assert not (run / 'result.json').exists()

    tool = start(table, tmp_path / 'work', *options)
    output, _ = tool.communicate(timeout=300)
    assert tool.returncode == 0, output
    assert '[1/1] both, seed 3: finished' in output
    assert losses(run) == losses(unbroken)
    result, unbroken = (json.loads((p / 'result.json').read_text()) for p in (run, unbroken))
    assert (result['final'], result['best']) == (unbroken['final'], unbroken['best'])
    # The checkpoints are removed, since the table does not keep them.
    assert not list(run.glob('*.pth'))


def test_commands_are_printed(study, environment, tmp_path):
    table = write(tmp_path / 'tiny.yml')
    result = study(table, '--work-dir', tmp_path / 'work', '--dry-run', PYTHON='python')
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 6
    start = f'SHAPES_ROOT={environment["STUDY_SHAPES"]} OMP_NUM_THREADS=1 python tools/train.py {SHAPES_CONFIG} '
    assert all(line.startswith(start) for line in lines)
    assert lines[2].endswith(' randomness.seed=3')
    assert f'--work-dir {tmp_path}/work/both/seed_3 --resume' in lines[2]
    one = study(table, '--work-dir', tmp_path / 'work', '--dry-run', '--run', 2, PYTHON='python')
    assert one.stdout.splitlines() == [lines[2]]

    array = study(
        *(table, '--work-dir', tmp_path / 'work', '--dry-run', '--slurm', 'part', '--jobs', 3),
        **{'GPUS': '2', 'SBATCH_ARGS': '--time=5', 'PYTHON': 'python'},
    )
    assert array.returncode == 0, array.stderr
    words = array.stdout.replace('\\', '').split()
    assert words[:3] == ['sbatch', '--partition=part', '--job-name=tiny']
    assert {'--ntasks=2', '--gres=gpu:2', '--requeue', '--signal=B:USR1@300', '--array=0,1,2,3,4,5%3'} < set(words)
    assert {f'--output={tmp_path}/work/slurm-%A_%a.out', '--time=5'} < set(words)
    script = f'{REPOSITORY}/tools/sbatch_study.sh'
    assert words[words.index(script) :] == [
        *(script, '--job', f'{REPOSITORY}/tools', f'{tmp_path}/work', str(table)),
    ]
    assert not (tmp_path / 'work').exists()


def test_bad_input_ends_before_the_first_run(study, tmp_path):
    table = write(tmp_path / 'tiny.yml')
    for args, words in (
        ([tmp_path / 'none.yml'], 'none.yml cannot be read'),
        ([write(tmp_path / 'bad.yml', seeds=[1, 1])], 'bad.yml: seeds: 1 is given twice'),
        ([table, '--run', 6], '--run 6: the table has the runs 0 to 5'),
    ):
        result = study(*args, '--work-dir', tmp_path / 'work')
        assert result.returncode == 1
        assert f'study: {words}' in result.stderr or words in result.stderr
        assert 'Traceback' not in result.stderr
    for args, words in (
        (['--jobs', '0'], '0: give a whole number'),
        (['--gpus', '0,1,2', '--gpus-per-run', '2'], '--gpus 0,1,2: 3 GPUs cannot be divided into runs of'),
        (['--slurm', 'part', '--gpus-per-run', '2'], '--slurm: put GPUS=N before the command'),
    ):
        result = study(table, *args, '--work-dir', tmp_path / 'work')
        assert result.returncode == 2
        assert words in result.stderr
    assert not (tmp_path / 'work').exists()
