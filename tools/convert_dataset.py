"""Convert a data set of YOLO, Pascal VOC, LabelMe, CVAT or Label Studio to COCO's format, and write a config for it."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from rich.console import Console

from mmgrc.conversion import MISSING_MASKS, READERS, convert, print_summary
from mmgrc.runs.error import InputError


def main() -> str | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('source', metavar='SOURCE', help='folder of the data set, or its annotation file')
    parser.add_argument('out', metavar='OUT', help='folder to write to, missing or empty')
    parser.add_argument('--format', choices=READERS, help='format of SOURCE (default: detected)')
    parser.add_argument('--images', metavar='DIR', help='folder of the images, if they are not in SOURCE')
    parser.add_argument('--classes', metavar='NAME', nargs='+', help='classes to keep, in this order (default: all)')
    parser.add_argument(
        '--val-share', type=float, default=0.2, metavar='F', help='part for validation, if SOURCE has no such split'
    )
    parser.add_argument('--seed', type=int, default=0, metavar='S', help='the same seed chooses the same images')
    parser.add_argument(
        '--missing-masks',
        choices=MISSING_MASKS,
        default='keep',
        help='objects without a mask: keep them, make a mask of the box, or skip their images',
    )
    parser.add_argument('--copy', action='store_true', help='copy the images instead of linking to them')
    parser.add_argument(
        '--config', metavar='NAME', help='config to start from (default: Mask R-CNN, or RetinaNet without masks)'
    )
    args = parser.parse_args()
    console = Console(stderr=True)
    try:
        with console.status('Reading annotations and sizes of images ...'):
            converted = convert(
                args.source,
                args.out,
                format=args.format,
                images=args.images,
                classes=args.classes,
                val_share=args.val_share,
                seed=args.seed,
                missing_masks=args.missing_masks,
                copy=args.copy,
                base=args.config,
            )
    except (InputError, OSError) as error:
        return f'convert_dataset: {error}'
    print_summary(converted, Console())
    config = converted.config
    shown = config.relative_to(Path.cwd()) if config.is_relative_to(Path.cwd()) else config
    print(f'Train with: python tools/train.py {shlex.quote(str(shown))}')
    return None


if __name__ == '__main__':
    sys.exit(main())
