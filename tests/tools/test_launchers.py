"""The shell scripts that start ranks: what they would start, and two ranks under torchrun."""

import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import NARROW, REPOSITORY, SHAPES_CONFIG
from tests.helpers.processes import Tool, ranks_of

SCRIPTS = {
    'dist_train': ['c.py', '2'],
    'dist_test': ['c.py', 'c.pth', '2'],
    'slurm_train': ['part', 'job', 'c.py', 'out dir'],
    'slurm_test': ['part', 'job', 'c.py', 'c.pth'],
    'sbatch_train': ['part', 'job', 'c.py', 'out dir'],
    'sbatch_study': ['part', 'job', '0,1', 'out dir', 'table.yml'],
}
VARIABLES = re.compile(r'(GPUS|GPUS_PER_NODE|CPUS_PER_TASK|NNODES|NODE_RANK|PORT|MASTER_\w+|S(RUN|BATCH)_ARGS|PYTHON)$')


def launch(script, *args, timeout=300, **env):
    kept = {name: value for name, value in os.environ.items() if not VARIABLES.match(name)}
    return subprocess.run(
        [f'tools/{script}.sh', *map(str, args)],
        cwd=REPOSITORY,
        env={**kept, **env},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def dry_run(script, *args, **env):
    """The command that would be started, as the shell would split it."""
    result = launch(script, *SCRIPTS[script], *args, '--dry-run', **env)
    assert result.returncode == 0, result.stderr
    split = subprocess.run(
        ['bash', '-c', f'printf "%s\\n" {result.stdout}'], capture_output=True, text=True, check=True
    )
    return split.stdout.splitlines()


def test_torchrun_on_one_machine_and_on_several():
    train = f'{REPOSITORY}/tools/train.py'
    options = ['--cfg-options', 'a=[1, 2]', "b='c d'"]
    command = dry_run('dist_train', *options)
    assert command[:5] == ['python', '-m', 'torch.distributed.run', '--nnodes=1', '--nproc_per_node=2']
    assert command[-7:] == [train, 'c.py', *options, '--launcher', 'pytorch']
    # A port that is free.
    assert '--rdzv-endpoint=localhost:0' in command

    command = dry_run('dist_test', NNODES='3', NODE_RANK='2', MASTER_ADDR='10.0.0.1', PORT='4321', PYTHON='py')
    assert command == [
        *('py', '-m', 'torch.distributed.run', '--nnodes=3', '--nproc_per_node=2', '--node_rank=2'),
        *('--master_addr=10.0.0.1', '--master_port=4321', f'{REPOSITORY}/tools/test.py', 'c.py', 'c.pth'),
        *('--launcher', 'pytorch'),
    ]
    assert '--master_port=29500' in dry_run('dist_train', NNODES='2')
    assert '--master_port=4321' in dry_run('dist_train', PORT='4321')


@pytest.mark.parametrize('script', ['dist_train', 'dist_test', 'slurm_train', 'slurm_test', 'sbatch_train'])
def test_pretraining_is_another_tool(script):
    tool = 'pretrain_test' if script.endswith('test') else 'pretrain'
    command = dry_run(script, TOOL=tool)
    # The job of sbatch gets it with its environment, which the next test checks.
    assert (f'{REPOSITORY}/tools/{tool}.py' in command) == (script != 'sbatch_train')
    result = launch(script, *SCRIPTS[script], '--dry-run', TOOL='pretran')
    assert result.returncode == 2
    assert result.stderr.startswith(f'TOOL=pretran: there is no {REPOSITORY}/tools/pretran.py')


def test_srun_with_and_without_gpus():
    command = dry_run('slurm_train', '--amp')
    assert command == [
        *('srun', '--partition=part', '--job-name=job', '--ntasks=8', '--cpus-per-task=5', '--gres=gpu:8'),
        *('--ntasks-per-node=8', '--kill-on-bad-exit=1', 'python', '-u', f'{REPOSITORY}/tools/train.py', 'c.py'),
        *('--work-dir=out dir', '--amp', '--launcher', 'slurm'),
    ]
    command = dry_run('slurm_test', GPUS='16', GPUS_PER_NODE='4', CPUS_PER_TASK='2', SRUN_ARGS='--time=5 -x bad')
    assert command == [
        *('srun', '--partition=part', '--job-name=job', '--ntasks=16', '--cpus-per-task=2', '--gres=gpu:4'),
        *('--ntasks-per-node=4', '--kill-on-bad-exit=1', '--time=5', '-x', 'bad', 'python', '-u'),
        *(f'{REPOSITORY}/tools/test.py', 'c.py', 'c.pth', '--launcher', 'slurm'),
    ]
    # Fewer GPUs than a node has, and none.
    assert {'--gres=gpu:2', '--ntasks-per-node=2'} < set(dry_run('slurm_train', GPUS='2'))
    command = dry_run('slurm_train', GPUS='2', GPUS_PER_NODE='0')
    assert '--ntasks=2' in command
    assert not any('gres' in word or 'per-node' in word for word in command)


def test_sbatch_asks_for_a_signal_and_resumes():
    command = dry_run('sbatch_train', '--amp', SBATCH_ARGS='--time=8:00:00', STOP_BEFORE='120')
    assert command[0] == 'sbatch'
    wanted = {
        '--requeue',
        '--open-mode=append',
        '--signal=B:USR1@120',
        '--time=8:00:00',
        '--output=out dir/slurm-%j.out',
    }
    assert wanted < set(command)
    script = f'{REPOSITORY}/tools/sbatch_train.sh'
    assert command[command.index(script) :] == [
        *(script, '--job', f'{REPOSITORY}/tools', 'c.py', '--work-dir=out dir', '--resume', '--amp'),
    ]
    assert not (REPOSITORY / 'out dir').exists()


# Stands in for what the job starts: it says how it was started, and ends on Slurm's signal as a training does.
TASK = """#!/bin/bash
trap 'exit 75' USR1
echo "$SRUN_CPUS_PER_TASK CPUs for $(basename "$0") $*"
[[ -z $CODE ]] || exit "$CODE"
for _ in {1..600}; do sleep 0.1; done
"""


@pytest.mark.parametrize(
    ('script', 'args', 'started'),
    [
        (
            'sbatch_train',
            ['c.py', '--amp'],
            'srun --kill-on-bad-exit=1 task -u {}/train.py c.py --amp --launcher slurm',
        ),
        (
            'sbatch_train',
            ['c.py', '--amp', 'TOOL=pretrain'],
            'srun --kill-on-bad-exit=1 task -u {}/pretrain.py c.py --amp --launcher slurm',
        ),
        ('sbatch_study', ['out dir', 't.yml'], 'task -u {}/study.py t.yml --work-dir out dir --run 3'),
    ],
)
@pytest.mark.parametrize('code', ['', '1', '0'])
def test_job_is_requeued_after_the_signal_and_not_after_a_failure(tmp_path, script, args, started, code):
    """The job's script by itself: what Slurm would run, with stand-ins for its commands."""
    for name in ('srun', 'task', 'scontrol'):
        (tmp_path / name).write_text('#!/bin/bash\necho "scontrol $*"\n' if name == 'scontrol' else TASK)
        (tmp_path / name).chmod(0o755)
    tools = REPOSITORY / 'tools'
    variables = dict(arg.split('=') for arg in args if '=' in arg)
    args = [arg for arg in args if '=' not in arg]
    job = subprocess.Popen(
        [shutil.copy(tools / f'{script}.sh', tmp_path / 'slurm_script'), '--job', tools, *args],
        env={
            **os.environ,
            **{'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'PYTHON': 'task', 'CODE': code},
            **{'SLURM_JOB_ID': '7', 'SLURM_ARRAY_TASK_ID': '3', 'SLURM_CPUS_PER_TASK': '5', **variables},
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    assert job.stdout.readline().strip() == f'5 CPUs for {started.format(tools)}'
    if not code:
        job.send_signal(signal.SIGUSR1)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == int(code or 75)
    assert ('scontrol requeue 7' in output) == (not code)


@pytest.mark.parametrize('script', SCRIPTS)
def test_wrong_arguments_are_answered_with_the_usage(script):
    result = launch(script, *SCRIPTS[script][:-1])
    assert result.returncode == 2
    needed = len(SCRIPTS[script])
    assert result.stderr.startswith(f'{script}.sh: {needed} arguments are needed, {needed - 1} were given')
    assert f'tools/{script}.sh ' in result.stderr
    result = launch(script, '--help')
    assert result.returncode == 0
    assert f'tools/{script}.sh ' in result.stdout


def test_numbers_are_checked():
    result = launch('dist_train', 'c.py', 'two')
    assert result.returncode == 2
    assert result.stderr.startswith('GPUS=two: give a whole number of at least 1')
    result = launch('slurm_train', *SCRIPTS['slurm_train'], GPUS='0')
    assert result.stderr.startswith('GPUS=0: give a whole number of at least 1')
    result = launch('sbatch_train', *SCRIPTS['sbatch_train'], STOP_BEFORE='5m')
    assert result.stderr.startswith('STOP_BEFORE=5m: give a whole number of at least 1')


@pytest.mark.skipif(not shutil.which('shellcheck'), reason='shellcheck is not installed')
def test_shell_is_clean():
    scripts = [*REPOSITORY.glob('tools/*.sh'), *REPOSITORY.glob('tests/helpers/slurm/*.sh')]
    assert len(scripts) > 6
    subprocess.run(['shellcheck', '-x', *scripts], cwd=REPOSITORY, check=True)


@pytest.mark.slow
def test_dead_rank_ends_the_job_which_resumes_and_tests(python, shapes, tmp_path):
    """7 images on 2 ranks: their last batches are uneven, too."""
    work_dir, log = tmp_path / 'run', tmp_path / 'log'
    env = {'SHAPES_ROOT': str(shapes), 'CUDA_VISIBLE_DEVICES': '', 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'}
    # What torchrun starts the ranks with.
    env['PYTHON_EXEC'] = str(python)
    command = [SHAPES_CONFIG, '2', '--work-dir', str(work_dir), '--resume', '--cfg-options', *NARROW]
    command += ['train_dataloader.dataset.indices=7', 'train_cfg.max_epochs=3', 'train_cfg.val_interval=100']
    with log.open('w') as file:
        job = subprocess.Popen(
            ['tools/dist_train.sh', *command],
            cwd=REPOSITORY,
            env={**os.environ, **env},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    end = time.monotonic() + 240
    while 'Epoch(train) [2][1/2]' not in log.read_text():
        assert job.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < end
        time.sleep(0.02)
    ranks = ranks_of(job.pid)
    assert sorted(ranks) == [0, 1]
    os.kill(ranks[1], signal.SIGKILL)
    assert job.wait(timeout=60) != 0
    assert not any(Path(f'/proc/{pid}').exists() for pid in ranks.values())
    assert 'Signal 9 (SIGKILL) received by PID' in log.read_text()
    assert (work_dir / 'epoch_1.pth').exists()
    assert not (work_dir / 'epoch_2.pth').exists()

    again = launch('dist_train', *command, **env)
    output = again.stdout + again.stderr
    assert again.returncode == 0, output[-3000:]
    assert 'resumed epoch: 1, iter: 2' in output
    assert 'Distributed launcher: pytorch' in output
    checkpoint = work_dir / 'epoch_3.pth'
    content = torch.load(checkpoint)
    assert content['meta']['iter'] == 6
    assert len(content['exact_resume']['ranks']) == 2

    # One process gives the same detections as two ranks.
    test = [SHAPES_CONFIG, checkpoint]
    tail = ['--work-dir', tmp_path / 'test', '--cfg-options', *NARROW]
    result = launch('dist_test', *test, 2, '--out', tmp_path / 'two.pkl', *tail, **env)
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    alone = Tool('test', *test, '--out', tmp_path / 'one.pkl', *tail, log=tmp_path / 'log', env=env)
    assert alone.end() == 0, alone.output[-3000:]
    two, one = (pickle.loads((tmp_path / name).read_bytes()) for name in ('two.pkl', 'one.pkl'))
    assert [p['img_id'] for p in two] == [p['img_id'] for p in one]
    for left, right in zip(two, one, strict=True):
        assert len(left['pred_instances']['scores'])
        torch.testing.assert_close(left['pred_instances']['bboxes'], right['pred_instances']['bboxes'])
        torch.testing.assert_close(left['pred_instances']['scores'], right['pred_instances']['scores'])


def test_launcher_without_ranks(shapes, tmp_path):
    env = {'SHAPES_ROOT': str(shapes)}
    run = Tool(
        'train', SHAPES_CONFIG, '--launcher', 'slurm', '--work-dir', tmp_path / 'run', log=tmp_path / 'log', env=env
    )
    assert run.end() == 1
    assert 'not set: this process was not started by it. Type: tools/slurm_train.sh' in run.output
    assert 'Traceback' not in run.output
    assert not (tmp_path / 'run').exists()
