"""Write the report of a training: one HTML page with config, environment, curves, AP of each class and examples."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmgrc.runs.error import InputError
from mmgrc.runs.preflight import check_output_file
from mmgrc.visualization.report import write_report


def main() -> str | None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', metavar='WORK_DIR', help='work dir of a training')
    parser.add_argument(
        '--predictions',
        metavar='FILE',
        help='output of tools/test.py --out (default: predictions.pkl in the work dir)',
    )
    parser.add_argument('--out', metavar='FILE', help='page to write (default: report.html in the work dir)')
    args = parser.parse_args()
    out = args.out or Path(args.work_dir) / 'report.html'
    try:
        # The default is in the work dir, which is not created.
        if args.out:
            # Any other file in a work dir is one of the run.
            check_output_file(args.out, ('.html', '.htm'))
        notes = write_report(args.work_dir, out, args.predictions)
    except (OSError, ValueError, InputError) as error:
        return f'report: {error}'
    for note in notes:
        print(f'left out: {note}')
    print(f'{out} is written')
    return None


if __name__ == '__main__':
    sys.exit(main())
