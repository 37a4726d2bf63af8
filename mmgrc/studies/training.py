"""One training of a study: its process and its files."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import signal
import statistics
import subprocess
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from mmgrc.engine.files import write_atomically
from mmgrc.engine.stop_signal_hook import CHECKPOINT_NAME
from mmgrc.runs.error import InputError
from mmgrc.runs.processes import child_processes, end_with_parent
from mmgrc.visualization.curves import pick_metrics, read_scalars

from .table import Run

__all__ = ['LOG', 'FinishedElsewhere', 'Result', 'Training', 'check_definition', 'drop_checkpoints', 'read_result']

LOG = 'train.log'
"""The output of a training, including that from before a resumption."""
_DEFINITION, _RESULT, _LOCK = 'run.json', 'result.json', '.lock'
_ETA = re.compile(r'eta: (?:(\d+) days?, )?(\d+):(\d\d):(\d\d)')
_TAIL_BYTES = 8192


@dataclass(frozen=True)
class Result:
    """The result of a run."""

    status: str
    """``'finished'``, ``'failed'``, or ``'unfinished'`` if the run has no result."""
    final: Mapping[str, float] = field(default_factory=dict)
    """The metrics of the last validation."""
    best: Mapping[str, float] = field(default_factory=dict)
    """The best value of each metric in any validation."""
    steps_per_second: float | None = None
    """From the median time of a step, without validations."""
    peak_memory: float | None = None
    """In MiB: the GPU memory that MMEngine logged, or on a CPU the resident memory of the process."""
    wall_time: float | None = None
    """Seconds of all its sessions, including start-up and validations."""
    message: str = ''
    """Why it failed, or what is special about its values."""


class FinishedElsewhere(Exception):  # noqa: N818
    """Another process has finished the run in the meantime."""

    def __init__(self, result: Result) -> None:
        super().__init__()
        self.result = result


def read_result(run: Run, metrics: Sequence[str] = ()) -> Result:
    """Read the result of a run. Without one, its status is ``'unfinished'``.

    Args:
        run: The run.
        metrics: Names of metrics. Those that were not stored with the result are read from the log. If it lacks them,
            the status is ``'failed'``.
    """
    try:
        result = Result(**json.loads((run.work_dir / _RESULT).read_text(encoding='utf-8')))
    except FileNotFoundError:
        return Result('unfinished')
    if result.status != 'finished' or all(metric in result.final for metric in metrics):
        return result
    try:
        validation = read_scalars(run.work_dir)[1]
        final, best, message = _values(list(validation.values()), metrics)
    except (FileNotFoundError, _NoMetric) as error:
        return Result('failed', message=str(error))
    return replace(result, final=final, best=best, message=message)


class _NoMetric(Exception):  # noqa: N818
    """The last validation of a run has no value for a metric."""


def _values(
    records: Sequence[Mapping[str, float]], metrics: Sequence[str]
) -> tuple[dict[str, float], dict[str, float], str]:
    """The values of the metrics in the last validation, the best ones of all, and a note."""
    # Without any detection, MMDetection's COCO metric gives no values. AP and AR are then 0. To leave such a run out
    # would favour arms that fail to learn.
    zeros = {metric: 0.0 for metric in metrics if metric.startswith('coco/')}
    empty = [not pick_metrics({0: dict(record)}) for record in records]
    records = [{**record, **zeros} if nothing else record for record, nothing in zip(records, empty, strict=True)]
    for metric in metrics:
        if not records or not math.isfinite(records[-1].get(metric, math.nan)):
            found = sorted(key for key in (records[-1] if records else {}) if '/' in key)
            raise _NoMetric(f'its last validation has no {metric}; it has: {", ".join(found) or "nothing"}')
    best = {m: max(r[m] for r in records if math.isfinite(r.get(m, math.nan))) for m in metrics}
    final = {metric: records[-1][metric] for metric in metrics}
    return final, best, 'no detections in its last validation' if empty[-1] else ''


def check_definition(run: Run, names: Container[str] | None = None) -> None:
    """Check that the work dir does not belong to another run.

    Args:
        run: The run.
        names: The parts of its definition to compare. None: all.

    Raises:
        InputError: The work dir was made with another config, or with other options or variables, or the config has
            been edited since.
    """
    try:
        found = json.loads((run.work_dir / _DEFINITION).read_text(encoding='utf-8'))['definition']
    except FileNotFoundError:
        return
    for name, now in run.definition.items():
        # An earlier version of mmgrc may not have written it.
        before = found.get(name, now)
        if (names is not None and name not in names) or before == now:
            continue
        if name == 'content':
            difference = next(_differences(before, now), None)
            if difference is None or not _has_training(run):
                continue
            name, before, now = difference
        raise InputError(
            f'{run.work_dir} was made with {name}={before!r}, but now it is {now!r}: remove this folder, '
            'or set another one with --work-dir'
        )


def _has_training(run: Run) -> bool:
    """Whether there is a result, or a checkpoint to resume from. If not, the run starts anew."""
    return read_result(run).status == 'finished' or any(run.work_dir.glob('*.pth'))


def _differences(before: object, now: object, entry: str = '') -> Iterator[tuple[str, object, object]]:
    """Find the entries of a config that differ.

    Yields:
        The name of an entry as for ``--cfg-options``, and both values. A missing one is None.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        parts = [(key, before.get(key), now.get(key)) for key in before | now]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        parts = [(i, *pair) for i, pair in enumerate(zip(before, now, strict=True))]
    else:
        # NaN does not equal itself.
        if repr(before) != repr(now):
            yield entry, before, now
        return
    for part, *pair in parts:
        yield from _differences(*pair, f'{entry}.{part}' if entry else str(part))


def drop_checkpoints(run: Run) -> None:
    """Remove the checkpoints of a run."""
    for path in [*run.work_dir.glob('*.pth'), run.work_dir / 'last_checkpoint']:
        path.unlink(missing_ok=True)


def _drop_unvalidated(run: Run) -> None:
    """Remove the newest checkpoint if the run was killed before the validation that follows it.

    A resumed training would skip that validation. Nothing is logged between the two, so in this case the log is older
    than the checkpoint. The training resumes from the previous checkpoint and repeats the steps.
    """
    logged = max((path.stat().st_mtime_ns for path in run.work_dir.glob('*/vis_data/scalars.json')), default=0)
    # The best checkpoint is written after a validation, and nothing resumes from it.
    saved = [path for path in run.work_dir.glob('*.pth') if not path.name.startswith('best_')]
    newest = max(saved, key=lambda path: path.stat().st_mtime_ns, default=None)
    # A checkpoint that was saved on a signal is from mid-epoch. File times may be rounded to milliseconds, so a
    # checkpoint can be as old as the log of the step before it. A validation takes longer.
    if newest is not None and newest.name != CHECKPOINT_NAME and newest.stat().st_mtime_ns >= logged:
        newest.unlink()
        (run.work_dir / 'last_checkpoint').unlink(missing_ok=True)


class Training:
    """The process of a run, from its start to its result.

    A run that is killed at any moment can be resumed: result, definition and checkpoints are written atomically. The
    run is locked while the training or the process that started it is alive.

    Args:
        run: What to train.
        env: Environment variables. Those of the run take precedence.
        metrics: Names of the metrics to read from its validations.

    Raises:
        BlockingIOError: Another process is training this run.
        FinishedElsewhere: Another process has finished it in the meantime.
        InputError: The work dir belongs to another run.
        OSError: The work dir cannot be written.
    """

    def __init__(self, run: Run, env: Mapping[str, str], metrics: Sequence[str]) -> None:
        self.run = run
        self._metrics = metrics
        self.log = run.work_dir / LOG
        self._env = env
        run.work_dir.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(run.work_dir / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            check_definition(run)
            if (result := read_result(run, metrics)).status == 'finished':
                raise FinishedElsewhere(result)
            _drop_unvalidated(run)
            self._start()
        except BaseException:
            os.close(self._lock)
            raise

    def _start(self) -> None:
        self._seconds_before = self._earlier_seconds()
        self._started = time.time()
        self._write_session()
        environment = {**os.environ, 'PYTHONUNBUFFERED': '1', **self._env, **self.run.env}
        with self.log.open('ab') as log:
            log.write(f'$ {self.run.shell_line()}\n'.encode())
            log.flush()
            # In a new session, so that Ctrl-C reaches only the tool, which then stops its trainings.
            self._process = subprocess.Popen(
                self.run.command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[self._lock],
                preexec_fn=end_with_parent,
            )

    def _earlier_seconds(self) -> float:
        """Return how long earlier sessions took. A session that was killed counts until it last wrote to its log."""
        try:
            session = json.loads((self.run.work_dir / _DEFINITION).read_text(encoding='utf-8'))
        except FileNotFoundError:
            return 0.0
        if session['started'] is None:
            return session['seconds']
        with contextlib.suppress(FileNotFoundError):
            return session['seconds'] + max(self.log.stat().st_mtime - session['started'], 0.0)
        return session['seconds']

    def _write_session(self) -> None:
        content = {'definition': self.run.definition, 'seconds': self._seconds_before, 'started': self._started}
        write_atomically(self.run.work_dir / _DEFINITION, json.dumps(content, indent=2).encode())

    def seconds_left(self) -> float | None:
        """Return the remaining time that the training logged last, or None if it has not logged any."""
        with self.log.open('rb') as file:
            file.seek(max(self.log.stat().st_size - _TAIL_BYTES, 0))
            tail = file.read().decode(errors='replace')
        # Only this session counts. Its first line is the command.
        said = _ETA.findall(tail.rsplit('\n$ ', 1)[-1])
        if not said:
            return None
        days, hours, minutes, seconds = (int(part or 0) for part in said[-1])
        return 86400 * days + 3600 * hours + 60 * minutes + seconds

    @property
    def seconds(self) -> float:
        """How long it has run, including earlier sessions."""
        return self._seconds_before + time.time() - self._started

    def stop(self) -> None:
        """Ask the training to save a checkpoint after the current iteration and to end."""
        # Only to the main processes: spawned data loader workers would die of it. torchrun does not pass it on.
        pids, number = [self._process.pid], signal.SIGUSR1
        if self.run.launcher == 'pytorch':
            pids = child_processes(self._process.pid)
            if not pids:
                pids, number = [self._process.pid], signal.SIGTERM
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """Kill the training and all processes that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def poll(self, stopping: bool = False) -> Result | None:
        """Check whether the training has ended, and write its result.

        Args:
            stopping: Whether it was asked to end. A nonzero exit code is then not a failure.

        Returns:
            None while it is running. The status is ``'unfinished'`` if it was stopped.
        """
        pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
        if not pid:
            return None
        code = self._process.returncode = os.waitstatus_to_exitcode(status)
        # If it was killed, its data loader workers may be left.
        self.kill()
        self._seconds_before, self._started = self.seconds, None
        self._write_session()
        if stopping and code:
            return self._close(Result('unfinished'))
        if code:
            return self._close(self._failed(f'exit code {code}'))
        return self._close(self._collect(None if self.run.launcher == 'slurm' else usage.ru_maxrss / 1024))

    def _close(self, result: Result) -> Result:
        if result.status != 'unfinished':
            write_atomically(self.run.work_dir / _RESULT, json.dumps(asdict(result), indent=2).encode())
        os.close(self._lock)
        return result

    def _failed(self, message: str) -> Result:
        return Result('failed', wall_time=self._seconds_before, message=message)

    def _collect(self, resident: float | None) -> Result:
        try:
            training, validation = read_scalars(self.run.work_dir)
            final, best, message = _values(list(validation.values()), self._metrics)
        except (FileNotFoundError, _NoMetric) as error:
            return self._failed(str(error))
        memory = [record['memory'] for record in training.values() if record.get('memory')]
        times = [record['time'] for record in training.values() if record.get('time')]
        return Result(
            status='finished',
            final=final,
            best=best,
            steps_per_second=1 / statistics.median(times) if times else None,
            peak_memory=max(memory) if memory else resident,
            wall_time=self._seconds_before,
            message=message,
        )
