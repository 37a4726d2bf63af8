"""Write the generated data set: circles, squares and triangles with masks, in COCO's format."""

from __future__ import annotations

import argparse
import sys

from mmgrc.datasets import write_shapes


def main() -> str | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('out', metavar='OUT', help='folder to write to')
    parser.add_argument('--images', type=int, default=240, metavar='N', help='training images')
    parser.add_argument('--val', type=int, default=60, metavar='N', help='validation images')
    parser.add_argument('--size', type=int, nargs=2, default=(160, 128), metavar=('W', 'H'), help='pixels of an image')
    parser.add_argument('--seed', type=int, default=0, metavar='S', help='the same seed gives the same bytes')
    parser.add_argument(
        '--hard',
        action='store_true',
        help='small objects known by outline and texture, not colour, among distractors',
    )
    args = parser.parse_args()
    try:
        write_shapes(args.out, args.images, args.val, tuple(args.size), args.seed, args.hard)
    except (ValueError, OSError) as error:
        return f'make_shapes: {error}'
    print(f'{args.images} training and {args.val} validation images are in {args.out}')
    return None


if __name__ == '__main__':
    sys.exit(main())
