"""Detect objects on images: drawings, and all detections as one file in COCO's format."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console
from rich.progress import track

from mmgrc.inference import detect, find_images, load_detector, select_classes
from mmgrc.preflight import PreflightError, load_config


def main() -> str | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('images', metavar='IMAGE|DIR|GLOB', help='an image, a folder, or a pattern in quotes')
    parser.add_argument('config', metavar='CONFIG', help='config that the checkpoint was trained with')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='checkpoint of the detector')
    parser.add_argument('--out-dir', metavar='DIR', default='detections', help='folder to write to')
    parser.add_argument('--score-thr', type=float, metavar='S', default=0.3, help='least score of a detection')
    parser.add_argument('--classes', metavar='NAME', nargs='+', help='keep these classes (default: all)')
    parser.add_argument('--device', metavar='D', help='cpu, cuda:0, ... (default: a GPU where there is one)')
    args = parser.parse_args()
    try:
        if not 0 <= args.score_thr <= 1:
            raise PreflightError(f'--score-thr {args.score_thr}: give a number from 0 to 1')
        images = find_images(args.images)
        model = load_detector(load_config(args.config), args.checkpoint, args.device)
        labels = select_classes(model, args.classes)
        console = Console(stderr=True)
        done = detect(model, images, args.out_dir, args.score_thr, labels)
        skipped = 0
        for _, problem in track(done, 'Images', total=len(images), console=console):
            if problem:
                skipped += 1
                console.print(f'skipped: {problem}', style='red', markup=False, soft_wrap=True)
    except (PreflightError, OSError) as error:
        return f'infer: {error}'
    print(f'{len(images) - skipped} images are done: {args.out_dir}/drawings/, {args.out_dir}/detections.json')
    return f'infer: {skipped} of {len(images)} images were skipped, see above' if skipped else None


if __name__ == '__main__':
    sys.exit(main())
