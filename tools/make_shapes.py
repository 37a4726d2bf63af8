"""Write a generated data set: circles, squares and triangles with masks, in COCO's format, or with --classification
images of single shapes in a folder for each class.
"""

from __future__ import annotations

import argparse
import sys

from mmgrc.datasets import write_shape_classes, write_shapes


def main() -> str | None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('out', metavar='OUT', help='folder to write to')
    parser.add_argument('--images', type=int, metavar='N', help='training images (default: 240; classification: 3000)')
    parser.add_argument('--val', type=int, metavar='N', help='validation images (default: 60; classification: 300)')
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        metavar=('W', 'H'),
        help='pixels of an image (default: 160 128; classification: 64 64)',
    )
    parser.add_argument(
        '--seed', type=int, default=0, metavar='S', help='the same seed gives the same bytes (default: 0)'
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        '--hard',
        action='store_true',
        help='small objects known by outline and texture, not colour, among distractors',
    )
    kind.add_argument(
        '--classification', action='store_true', help='one shape in each image, and a folder for each class'
    )
    args = parser.parse_args()
    images, val, size = (3000, 300, (64, 64)) if args.classification else (240, 60, (160, 128))
    images, val = images if args.images is None else args.images, val if args.val is None else args.val
    size = tuple(args.size or size)
    try:
        if args.classification:
            write_shape_classes(args.out, images, val, size, args.seed)
        else:
            write_shapes(args.out, images, val, size, args.seed, args.hard)
    except (ValueError, OSError) as error:
        return f'make_shapes: {error}'
    print(f'{images} training and {val} validation images are in {args.out}')
    return None


if __name__ == '__main__':
    sys.exit(main())
