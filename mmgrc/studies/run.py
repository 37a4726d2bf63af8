"""The runs of a study, one after the other or several at once, with a bar or a line for each."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from .summary import write_csv, write_summary
from .table import Run, Study
from .training import LOG, Result, Training, check_definition, drop_checkpoints, read_result

__all__ = ['run_one', 'run_study']

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 60
"""From Ctrl-C to the end of trainings that have not saved a checkpoint by then."""
_TAIL_LINES = 15
# As tools/train.py ends: on Slurm's signal with what sysexits.h has for "try again", else as shells have it.
_EXIT_CODES = {signal.SIGUSR1: 75}
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def run_study(study: Study, work_dir: str | Path, jobs: int = 1, threads: int = 0, gpus: Sequence[str] = ()) -> int:
    """Do all runs of a study that are not finished, and write what came of them.

    Args:
        study: The table.
        work_dir: Folder of the study.
        jobs: How many trainings at once.
        threads: ``OMP_NUM_THREADS`` of each, where the table does not set it; 0: the machine's cores shared out.
        gpus: GPUs that are shared out to the jobs, by their CUDA numbers.

    Returns:
        Exit code: 0 where all runs are finished, 1 where some failed or are another process's, after a signal what
        shells have for it.

    Raises:
        InputError: A run's folder is of another run. Nothing was started.
    """
    runs = study.runs(work_dir)
    for run in runs:
        check_definition(run)
    schedule = _Schedule(study, runs, jobs, threads, gpus)
    code = schedule.run(after_each=lambda: write_csv(study, work_dir))
    written = write_summary(study, work_dir)
    if written:
        schedule.say(written)
    return code


def run_one(study: Study, work_dir: str | Path, index: int, threads: int = 0) -> int:
    """Do one run of a study, as a task of a batch system's array; of several Slurm tasks each is a rank.

    Args:
        study: The table.
        work_dir: Folder of the study.
        index: Place of the run among :meth:`Study.runs`.
        threads: See :func:`run_study`.

    Returns:
        Exit code, see :func:`run_study`; 75 after SIGUSR1: the run goes on when it is started again.

    Raises:
        InputError: The run's folder is of another run.
    """
    run = study.runs(work_dir)[index]
    check_definition(run)
    return _Schedule(study, [run], 1, threads, (), ranks=int(os.environ.get('SLURM_NTASKS', '1')) > 1).run()


class _Schedule:
    """Starts trainings, watches them and tells of them, all in one thread."""

    def __init__(
        self, study: Study, runs: Sequence[Run], jobs: int, threads: int, gpus: Sequence[str], ranks: bool = False
    ) -> None:
        self._study, self._runs, self._ranks = study, runs, ranks
        self._env = {'OMP_NUM_THREADS': str(threads or max(1, (os.cpu_count() or 1) // jobs))}
        self._gpus = gpus
        self._console = Console(highlight=False, soft_wrap=True)
        self._results: dict[Run, Result] = {}
        self._waiting: list[Run] = []
        # A place for each job, which has its GPU.
        self._active: list[Training | None] = [None] * jobs
        self._problems = 0
        self._signal: int | None = None
        self._kill_at = float('inf')

    def say(self, text: str) -> None:
        """Print a text as it is."""
        self._console.print(text, markup=False)

    def run(self, after_each: Callable[[], None] = lambda: None) -> int:
        """Do the runs; returns the exit code."""
        for run in self._runs:
            result = read_result(run)
            if result.status == 'finished':
                self._results[run] = result
                self._tidy(run)
            else:
                self._waiting.append(run)
        self.say(f'{len(self._runs)} runs, {len(self._results)} of them finished before')
        with _signals(self._on_signal), self._progress() as progress:
            task = progress.add_task(self._study.name, runs='', left='')
            try:
                while self._step():
                    progress.update(task, refresh=True, **self._state())
                    if self._collect():
                        after_each()
                    time.sleep(_POLL_SECONDS)
                progress.update(task, refresh=True, **self._state())
            finally:
                # None is left after a run to the end.
                for training in self._trainings():
                    training.kill()
        if self._signal is not None:
            self.say('study: stopped. The same command goes on.')
            return _EXIT_CODES.get(self._signal, 128 + self._signal)
        return 1 if self._problems else 0

    def _progress(self) -> Progress:
        # No thread that draws: children are started from this one.
        return Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            TextColumn('{task.fields[runs]} {task.fields[left]}'),
            console=self._console,
            auto_refresh=False,
            disable=not self._console.is_terminal,
        )

    def _state(self) -> dict:
        """What the bar shows: computing time, done and left."""
        left = self._seconds_left()
        done = sum(result.wall_time or 0 for result in self._results.values())
        done += sum(training.seconds for training in self._trainings())
        return {
            'completed': done,
            'total': None if left is None else done + left,
            'runs': f'{len(self._results)}/{len(self._runs)} runs',
            'left': '' if left is None else f'{_duration(left / len(self._active))} left',
        }

    def _trainings(self) -> Iterable[Training]:
        return [training for training in self._active if training is not None]

    def _step(self) -> bool:
        """Start what can be started; whether anything is to be done."""
        if self._signal is not None:
            self._waiting.clear()
        for place, training in enumerate(self._active):
            while training is None and self._waiting:
                training = self._active[place] = self._start(self._waiting.pop(0), place)
        if time.monotonic() > self._kill_at:
            for training in self._trainings():
                training.kill()
        return any(self._trainings())

    def _start(self, run: Run, place: int) -> Training | None:
        env = dict(self._env)
        if self._gpus:
            env['CUDA_VISIBLE_DEVICES'] = self._gpus[place % len(self._gpus)]
        try:
            return Training(run, env, self._ranks)
        except BlockingIOError:
            self._problems += 1
            self.say(f'{run}: left out, for another process is at it')
        except OSError as error:
            self._problems += 1
            self.say(f'{run}: cannot be started: {error}')
        return None

    def _collect(self) -> bool:
        """Take what has ended; whether there was anything."""
        ended = False
        for place, training in enumerate(self._active):
            if training is None:
                continue
            result = training.poll(self._study.metrics, stopping=self._signal is not None)
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
            self.say(', '.join([start, *values, took]))
            return
        self._problems += 1
        log = run.work_dir / LOG
        lines = log.read_text(errors='replace').splitlines()[-_TAIL_LINES:]
        self.say('\n'.join([f'{start}: {result.message}, {took}. The end of {log}:', *(f'    {x}' for x in lines)]))

    def _seconds_left(self) -> float | None:
        """Computing time to the end, as far as it can be known: of what runs, what it says; of the rest, the mean."""
        known = [(run.arm, r.wall_time) for run, r in self._results.items() if r.status == 'finished' and r.wall_time]
        left = 0.0
        # Runs of which only the others can tell, and how long they have been at work.
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
        again = self._signal is not None
        self._signal = number
        for training in self._trainings():
            if again:
                training.kill()
            else:
                training.stop()
        # Who sends SIGUSR1 knows when he will end the job.
        if number != signal.SIGUSR1:
            self._kill_at = time.monotonic() + _GRACE_SECONDS


@contextmanager
def _signals(on_signal: Callable[[int], None]):
    """Hand the signals that ask for an end to a function."""
    previous = {number: signal.signal(number, lambda n, frame: on_signal(n)) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes // 60}:{minutes % 60:02}:{seconds:02}'
