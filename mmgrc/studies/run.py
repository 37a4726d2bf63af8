"""Train the runs of a study, one by one or several at once, and report the progress."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from mmgrc.runs.error import InputError

from .summary import write_csv, write_summary
from .table import Run, Study
from .training import LOG, FinishedElsewhere, Result, Training, check_definition, drop_checkpoints, read_result

__all__ = ['check_gpus', 'run_one', 'run_study']

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 60
"""Time after Ctrl-C in which trainings can save a checkpoint. After it they are killed."""
_TAIL_LINES = 15
# The same as in tools/train.py: EX_TEMPFAIL of sysexits.h for Slurm's signal. For other signals, 128 plus the number.
_EXIT_CODES = {signal.SIGUSR1: 75}
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def run_study(
    study: Study, work_dir: str | Path, jobs: int = 1, threads: int = 0, gpus: Sequence[str] = (), ranks: int = 1
) -> int:
    """Train all unfinished runs of a study and write the results.

    Args:
        study: The table.
        work_dir: Folder of the study.
        jobs: Number of trainings that run at once.
        threads: ``OMP_NUM_THREADS`` of each rank, unless the table sets it. 0 divides the CPU cores among all ranks.
        gpus: CUDA device numbers, distributed over the jobs. By default, several jobs share the visible ones.
        ranks: Number of ranks of each run. Each takes one of the GPUs.

    Returns:
        Exit code: 0 if all runs are finished, 1 if a run failed, could not start, or is running in another process.
        After a signal, 75 for SIGUSR1 and 128 plus its number for the others.

    Raises:
        InputError: A run's folder belongs to another run. No run was started.
    """
    runs = study.runs(work_dir, ranks)
    for run in runs:
        check_definition(run)
    schedule = _Schedule(study, runs, jobs, threads, gpus)
    code = schedule.run(after_each=lambda: write_csv(study, work_dir))
    written = write_summary(study, work_dir)
    if written:
        schedule.say(written)
    return code


def run_one(
    study: Study, work_dir: str | Path, index: int, threads: int = 0, gpus: Sequence[str] = (), ranks: int = 1
) -> int:
    """Train one run of a study, as one task of a batch system's job array.

    If the job has several Slurm tasks, each of them is a rank of the run.

    Args:
        study: The table.
        work_dir: Folder of the study.
        index: Index of the run in :meth:`Study.runs`.
        threads: See :func:`run_study`.
        gpus: See :func:`run_study`.
        ranks: See :func:`run_study`. A job of several Slurm tasks takes 1.

    Returns:
        Exit code, see :func:`run_study`. After 75 (SIGUSR1) the same call resumes the run.

    Raises:
        InputError: The run's folder belongs to another run, or the job has several tasks and ``ranks`` is not 1.
    """
    tasks = int(os.environ.get('SLURM_NTASKS', '1'))
    if tasks > 1 and ranks > 1:
        raise InputError(f'--gpus-per-run {ranks}: each of the {tasks} tasks of this Slurm job is a rank: leave it out')
    run = (study.runs(work_dir, tasks, 'slurm') if tasks > 1 else study.runs(work_dir, ranks))[index]
    check_definition(run)
    return _Schedule(study, [run], 1, threads, gpus).run()


class _Schedule:
    """Starts, monitors and reports trainings, all in one thread."""

    def __init__(self, study: Study, runs: Sequence[Run], jobs: int, threads: int, gpus: Sequence[str]) -> None:
        self._study, self._runs = study, runs
        # Slurm gives each rank its own cores and GPU.
        ranks = 1 if runs[0].launcher == 'slurm' else runs[0].ranks
        self._env = {'OMP_NUM_THREADS': str(threads or max(1, _cores() // (jobs * ranks)))}
        gpus = gpus or (_visible_gpus() if jobs > 1 else [])
        self._gpus = [','.join(gpus[i : i + ranks]) for i in range(0, len(gpus), ranks)]
        self._console = Console(highlight=False, soft_wrap=True)
        self._results: dict[Run, Result] = {}
        self._waiting: list[Run] = []
        # One slot for each job. Each slot has its GPU.
        self._active: list[Training | None] = [None] * jobs
        self._problems = 0
        self._signal: int | None = None
        self._received = self._passed_on = 0
        self._kill_at = float('inf')

    def say(self, text: str) -> None:
        """Print a text without markup."""
        self._console.print(text, markup=False)

    def run(self, after_each: Callable[[], None] = lambda: None) -> int:
        """Train the runs and return the exit code."""
        for run in self._runs:
            result = read_result(run, self._study.metrics)
            if result.status == 'finished':
                self._results[run] = result
                self._tidy(run)
            else:
                self._waiting.append(run)
        self.say(f'{len(self._runs)} runs, {len(self._results)} of them already finished')
        with _handle_signals(self._on_signal), self._progress() as progress:
            task = progress.add_task(self._study.name, runs='', left='')
            try:
                while self._step():
                    progress.update(task, refresh=True, **self._state())
                    if self._collect():
                        after_each()
                    time.sleep(_POLL_SECONDS)
                progress.update(task, refresh=True, **self._state())
            finally:
                # None is left unless an error ended the loop.
                for training in self._trainings():
                    training.kill()
        if self._signal is not None:
            self.say('study: stopped. The same command resumes it.')
            return _EXIT_CODES.get(self._signal, 128 + self._signal)
        return 1 if self._problems else 0

    def _progress(self) -> Progress:
        # Without a thread for drawing, since this thread starts the child processes.
        return Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            TextColumn('{task.fields[runs]} {task.fields[left]}'),
            console=self._console,
            auto_refresh=False,
            disable=not self._console.is_terminal,
        )

    def _state(self) -> dict:
        """Return what the bar shows: the computing time that is done and left."""
        left = self._seconds_left()
        done = sum(result.wall_time or 0 for result in self._results.values())
        done += sum(training.seconds for training in self._trainings())
        return {
            'completed': done,
            'total': None if left is None else done + left,
            'runs': f'{len(self._results)}/{len(self._runs)} runs',
            'left': '' if left is None else f'{_duration(left / len(self._active))} left',
        }

    def _trainings(self) -> list[Training]:
        return [training for training in self._active if training is not None]

    def _step(self) -> bool:
        """Start what can be started, and return whether anything is still running."""
        for place, training in enumerate(self._active):
            while training is None and self._waiting and self._signal is None:
                training = self._active[place] = self._start(self._waiting.pop(0), place)
        # Here and not in the handler, which could interrupt a start.
        if self._received > self._passed_on:
            for training in self._trainings():
                if self._received > 1:
                    training.kill()
                else:
                    training.stop()
            self._passed_on = self._received
        if time.monotonic() > self._kill_at:
            for training in self._trainings():
                training.kill()
        return any(self._trainings())

    def _start(self, run: Run, place: int) -> Training | None:
        env = dict(self._env)
        if self._gpus:
            env['CUDA_VISIBLE_DEVICES'] = self._gpus[place % len(self._gpus)]
        try:
            return Training(run, env, self._study.metrics)
        except BlockingIOError:
            self._problems += 1
            self.say(f'{run}: skipped: another process is running it')
        except FinishedElsewhere as finished:
            self._results[run] = finished.result
            self.say(f'{run}: another process has finished it')
        except OSError as error:
            self._problems += 1
            self.say(f'{run}: cannot start: {error}')
        return None

    def _collect(self) -> bool:
        """Collect the trainings that have ended, and return whether there were any."""
        ended = False
        for place, training in enumerate(self._active):
            if training is None:
                continue
            result = training.poll(stopping=self._signal is not None)
            if result is None:
                continue
            ended, self._active[place] = True, None
            if result.status == 'unfinished':
                continue
            self._results[training.run] = result
            self._report(training.run, result)
            if result.status == 'finished':
                self._tidy(training.run)
        return ended

    def _tidy(self, run: Run) -> None:
        if not self._study.keep_checkpoints:
            drop_checkpoints(run)

    def _report(self, run: Run, result: Result) -> None:
        start = f'[{len(self._results)}/{len(self._runs)}] {run}: {result.status}'
        took = f'took {_duration(result.wall_time or 0)}'
        if result.status == 'finished':
            values = [f'{metric.split("/")[-1]} {value:.3f}' for metric, value in result.final.items()]
            self.say(', '.join([start, *values, *filter(None, [result.message]), took]))
            return
        self._problems += 1
        log = run.work_dir / LOG
        lines = log.read_text(encoding='utf-8', errors='replace').splitlines()[-_TAIL_LINES:]
        self.say('\n'.join([f'{start}: {result.message}, {took}. The end of {log}:', *(f'    {x}' for x in lines)]))

    def _seconds_left(self) -> float | None:
        """Estimate the computing time that is left; None if nothing is known yet.

        A running training logs its own estimate. The other runs are estimated by the mean of the known ones. These are
        runs of the same arm, if there are any.
        """
        known = [(run.arm, r.wall_time) for run, r in self._results.items() if r.status == 'finished' and r.wall_time]
        left = 0.0
        # Runs that can only be estimated from other runs, and how long they have been running.
        unknown = [(run, 0.0) for run in self._waiting]
        for training in self._trainings():
            seconds = training.seconds_left()
            if seconds is None:
                unknown.append((training.run, training.seconds))
            else:
                left += seconds
                known.append((training.run.arm, training.seconds + seconds))
        if unknown and not known:
            return None
        for run, done in unknown:
            times = [time for arm, time in known if arm is run.arm] or [time for _, time in known]
            left += max(sum(times) / len(times) - done, 0)
        return left

    def _on_signal(self, number: int) -> None:
        self._signal = number
        self._received += 1
        # The sender of SIGUSR1 decides when to end the job.
        if number != signal.SIGUSR1:
            self._kill_at = time.monotonic() + _GRACE_SECONDS


@contextmanager
def _handle_signals(on_signal: Callable[[int], None]) -> Iterator[None]:
    """Pass the signals that ask for an end to a function."""
    previous = {number: signal.signal(number, lambda n, frame: on_signal(n)) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _cores() -> int:
    """The CPU cores that this process may use."""
    allotted = os.environ.get('SLURM_CPUS_PER_TASK', '')
    if allotted.isdecimal():
        return int(allotted)
    # Only on Linux.
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _visible_gpus() -> list[str]:
    """The GPUs that trainings would see, by number or as CUDA_VISIBLE_DEVICES names them."""
    count, named = torch.cuda.device_count(), os.environ.get('CUDA_VISIBLE_DEVICES', '')
    return named.split(',')[:count] if named else [str(i) for i in range(count)]


def check_gpus(gpus: Sequence[str]) -> None:
    """Check the GPUs that were asked for. A training would run on the CPU instead, without a word.

    Raises:
        InputError: This machine has no such GPU.
    """
    count, asked = torch.cuda.device_count(), f'--gpus {",".join(gpus)}'
    for gpu in gpus:
        if not re.fullmatch(r'\d+|(GPU|MIG)-[\w/-]+', gpu):
            raise InputError(f'{asked}: {gpu!r} is not a GPU: give numbers such as 0,1,2,3')
        if not count:
            raise InputError(f'{asked}: this machine has no GPU that PyTorch can use')
        # CUDA_VISIBLE_DEVICES hides others from torch, but not from the trainings.
        if gpu.isdecimal() and int(gpu) >= count and 'CUDA_VISIBLE_DEVICES' not in os.environ:
            raise InputError(f'{asked}: this machine has the GPUs 0 to {count - 1}')


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes // 60}:{minutes % 60:02}:{seconds:02}'
