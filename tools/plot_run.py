"""Plot loss and mAP of a training, from its work dir."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmgrc.runs.error import InputError
from mmgrc.visualization.curves import plot_run
from mmgrc.visualization.image_file import check_image_file


def main() -> str | None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', metavar='WORK_DIR', help='work dir of a training')
    parser.add_argument('--out', metavar='FILE', help='image file to write (default: curves.png in the work dir)')
    args = parser.parse_args()
    out = args.out or Path(args.work_dir) / 'curves.png'
    try:
        # The default is in the work dir, which is not created.
        if args.out:
            check_image_file(args.out)
        plot_run(args.work_dir, out)
    except (InputError, OSError, ValueError) as error:
        return f'plot_run: {error}'
    print(f'{out} is written')
    return None


if __name__ == '__main__':
    sys.exit(main())
