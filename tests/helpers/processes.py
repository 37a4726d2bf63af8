"""Real processes for tests: ranks of a gloo group, and a tool that runs in parallel to the test.

They are forked, so that they need not import MMDetection again.
"""

import multiprocessing
import os
import random
import signal
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from mmengine.logging import MMLogger

from mmgrc.runs.processes import child_processes
from tests.conftest import REPOSITORY

_FORK = multiprocessing.get_context('fork')


def run_ranks(function, world_size, folder, *args, timeout=240, backend='gloo'):
    """Call ``function(rank, *args)`` in each rank and return the results. Fail if a rank fails or hangs.

    With the backend NCCL each rank has a GPU, and is not forked, since the parent may have used CUDA.
    """
    folder = Path(folder)
    rendezvous = folder / f'rendezvous-{time.monotonic_ns()}'
    context = multiprocessing.get_context('spawn') if backend == 'nccl' else _FORK
    processes = [
        context.Process(target=_rank, args=(function, rank, world_size, rendezvous, backend, args))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + timeout
    for process in processes:
        process.join(max(end - time.monotonic(), 0))
    hung = [process for process in processes if process.is_alive()]
    for process in hung:
        process.kill()
    assert not hung, 'the ranks hang'
    assert [process.exitcode for process in processes] == [0] * world_size
    return [torch.load(f'{rendezvous}.{rank}') for rank in range(world_size)]


def _rank(function, rank, world_size, rendezvous, backend, args):
    # The parent's thread pool does not exist in a fork.
    torch.set_num_threads(1)
    if backend == 'nccl':
        torch.cuda.set_device(rank)
    dist.init_process_group(
        backend,
        init_method=f'file://{rendezvous}',
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=120),
    )
    torch.save(function(rank, *args), f'{rendezvous}.{rank}')
    dist.destroy_process_group()


def ranks_of(launcher):
    """Return the process ids of the ranks of a launcher, by rank."""
    ranks = {}
    for pid in child_processes(launcher):
        try:
            entries = Path(f'/proc/{pid}/environ').read_text().split('\0')
        except OSError:
            continue
        variables = dict(entry.split('=', 1) for entry in entries if '=' in entry)
        if 'RANK' in variables:
            ranks[int(variables['RANK'])] = pid
    return ranks


class Tool:
    """``tools/NAME.py`` in a separate process, with its output in a file."""

    def __init__(self, name, *args, log, env=None, before=None):
        self.log = Path(log)
        self.process = _FORK.Process(target=self._run, args=(name, args, env or {}, before))
        self.process.start()

    def _run(self, name, args, env, before):
        from mmgrc.runs.mmdet_tools import main

        output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, 'w', buffering=1), os.fdopen(2, 'w', buffering=1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)
        # It needs its own logs.
        MMLogger._instance_dict.clear()
        # A new process starts with its own random numbers.
        random.seed()
        np.random.seed()
        os.environ.update(env)
        os.chdir(REPOSITORY)
        sys.argv = [f'tools/{name}.py', *map(str, args)]
        if before is not None:
            before()
        code = 1
        try:
            code = main(name)
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        if isinstance(code, str):
            # Like sys.exit().
            print(code, file=sys.stderr)
            code = 1
        os._exit(code or 0)

    @property
    def output(self):
        return self.log.read_text() if self.log.exists() else ''

    def wait_for(self, words, timeout=240):
        """Wait until the output has ``words``."""
        end = time.monotonic() + timeout
        while words not in self.output:
            assert self.process.is_alive(), f'it ended without {words!r}:\n{self.output[-3000:]}'
            assert time.monotonic() < end, f'no {words!r} in:\n{self.output[-3000:]}'
            time.sleep(0.02)

    def send(self, number):
        os.kill(self.process.pid, number)

    def end(self, timeout=240):
        """Wait for the end and return the exit code."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(f'it does not end:\n{self.output[-3000:]}')
        return self.process.exitcode
