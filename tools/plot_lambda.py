"""Plot σ(λ), the weight of the memory in the mix, of each layer and head, for one or more checkpoints."""

from __future__ import annotations

import argparse
import sys

from mmgrc.runs.error import InputError
from mmgrc.visualization.image_file import check_image_file
from mmgrc.visualization.mix import plot_lambda


def main() -> str | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('checkpoints', metavar='CHECKPOINT', nargs='+', help='checkpoints of GRC models')
    parser.add_argument('--names', metavar='NAME', nargs='+', help='titles, one per checkpoint (default: the paths)')
    parser.add_argument('--out', metavar='FILE', default='lambda.png', help='image file to write')
    args = parser.parse_args()
    try:
        check_image_file(args.out)
        plot_lambda(args.checkpoints, args.out, args.names)
    except (InputError, OSError, ValueError) as error:
        return f'plot_lambda: {error}'
    print(f'{args.out} is written')
    return None


if __name__ == '__main__':
    sys.exit(main())
