"""Submit a study to Slurm as a job array: each task trains one run."""

from __future__ import annotations

import subprocess
from pathlib import Path

from .table import TOOLS, Study
from .training import check_definition, read_result

__all__ = ['submit']


def submit(
    study: Study, work_dir: str | Path, partition: str, at_once: int | None = None, dry_run: bool = False
) -> int:
    """Submit the unfinished runs with ``tools/sbatch_study.sh``.

    Args:
        study: The table.
        work_dir: Folder of the study. All nodes must see it.
        partition: Partition of Slurm.
        at_once: Number of tasks that may run at once. None leaves it to Slurm.
        dry_run: Print the command instead of running it.

    Returns:
        Exit code of ``sbatch``.

    Raises:
        InputError: A run's folder belongs to another run.
        OSError: The launcher cannot be started.
    """
    runs = study.runs(work_dir, ranks=None)
    for run in runs:
        check_definition(run)
    indices = [str(i) for i, run in enumerate(runs) if read_result(run, study.metrics).status != 'finished']
    if not indices:
        print('all runs are finished')
        return 0
    array = ','.join(indices) + (f'%{at_once}' if at_once else '')
    command = [str(TOOLS / 'sbatch_study.sh'), partition, study.name, array, str(work_dir), str(study.path)]
    return subprocess.run([*command, '--dry-run'] if dry_run else command).returncode
