"""Train the arms of a table over several seeds and compare them. See docs/study.md."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmgrc.runs.error import InputError

try:
    from mmgrc.studies import check_gpus, read_table, run_one, run_study, submit, write_summary
except ModuleNotFoundError as error:
    if error.name != 'fcntl':
        raise
    sys.exit('study: it locks and stops its trainings as only Linux and macOS can. On Windows, use WSL')


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text}: give a whole number from 1 up')
    return int(text)


def main() -> int | str | None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('table', metavar='TABLE', help='YAML file of arms and seeds')
    parser.add_argument('--work-dir', metavar='DIR', help='folder of the study (default: work_dirs/studies/TABLE)')
    parser.add_argument('--jobs', type=_whole, metavar='N', help='runs at once (default: 1, or what --gpus allows)')
    parser.add_argument('--gpus', metavar='IDS', help='GPUs for the jobs, such as 0,1,2,3 (default: the visible ones)')
    parser.add_argument(
        '--gpus-per-run', type=_whole, default=1, metavar='N', help='ranks of each run, on GPUs or CPUs (default: 1)'
    )
    parser.add_argument('--threads', type=_whole, metavar='N', help='CPU threads per rank (default: cores / ranks)')
    parser.add_argument('--reference', metavar='ARM', help='arm to compare with in the summary (default: of the table)')
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument('--slurm', metavar='PARTITION', help='submit the unfinished runs as a job array, --jobs at once')
    mode.add_argument('--run', type=int, metavar='INDEX', help='train only this run, counted from 0')
    mode.add_argument('--summary', action='store_true', help='only write the tables of the finished runs')
    parser.add_argument('--dry-run', action='store_true', help='print the commands instead of running them')
    args = parser.parse_args()
    gpus, ranks = args.gpus.split(',') if args.gpus else [], args.gpus_per_run
    if len(gpus) % ranks:
        parser.error(f'--gpus {args.gpus}: {len(gpus)} GPUs cannot be divided into runs of --gpus-per-run {ranks}')
    if args.slurm and (ranks > 1 or gpus):
        option = '--gpus-per-run' if ranks > 1 else '--gpus'
        parser.error(f'{option} does not apply to --slurm: put GPUS=N before the command')
    if args.slurm and args.threads:
        parser.error('--threads does not apply to --slurm: put CPUS_PER_TASK=N before the command')
    try:
        study = read_table(args.table, args.reference)
        work_dir = Path(args.work_dir or Path('work_dirs', 'studies', study.name)).absolute()
        if args.slurm:
            return submit(study, work_dir, args.slurm, args.jobs, args.dry_run)
        runs = study.runs(work_dir, ranks)
        if args.run is not None and not 0 <= args.run < len(runs):
            return f'study: --run {args.run}: the table has the runs 0 to {len(runs) - 1}'
        if args.dry_run:
            for run in runs if args.run is None else [runs[args.run]]:
                print(run.shell_line())
            return None
        if args.summary:
            print(write_summary(study, work_dir) or 'no run is finished')
            return None
        check_gpus(gpus)
        if args.run is not None:
            return run_one(study, work_dir, args.run, args.threads or 0, gpus, ranks)
        jobs = args.jobs or max(1, len(gpus) // ranks)
        return run_study(study, work_dir, jobs, args.threads or 0, gpus, ranks)
    except (InputError, OSError) as error:
        return f'study: {error}'


if __name__ == '__main__':
    sys.exit(main())
