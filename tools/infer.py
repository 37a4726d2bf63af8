"""Detect objects on images. Write drawings, and all detections as one file in COCO's format."""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import closing

from rich.console import Console
from rich.progress import track

from mmgrc.inference import detect, find_images, load_detector, select_classes
from mmgrc.runs.config import load_config
from mmgrc.runs.error import InputError

# By convention of shells: terminated by SIGINT.
_EXIT_INTERRUPTED = 130


def main() -> str | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('images', metavar='IMAGE|DIR|GLOB', help='an image, a folder, or a quoted glob pattern')
    parser.add_argument('config', metavar='CONFIG', help='config that the checkpoint was trained with')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='checkpoint of the detector')
    parser.add_argument('--out-dir', metavar='DIR', default='detections', help='folder to write to')
    parser.add_argument('--score-thr', type=float, metavar='S', default=0.3, help='minimum score of a detection')
    parser.add_argument('--classes', metavar='NAME', nargs='+', help='classes to keep (default: all)')
    parser.add_argument('--device', metavar='D', help='cpu, cuda:0, ... (default: a GPU if there is one)')
    args = parser.parse_args()
    try:
        if not 0 <= args.score_thr <= 1:
            raise InputError(f'--score-thr {args.score_thr}: give a number from 0 to 1')
        images = find_images(args.images)
        model = load_detector(load_config(args.config), args.checkpoint, args.device)
        labels = select_classes(model, args.classes)
    except (InputError, OSError) as error:
        return f'infer: {error}'
    # Treat a batch system's SIGTERM like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(stderr=True)
    done, problems = 0, []
    try:
        # Closing writes the detections of a run that is interrupted.
        with closing(detect(model, images, args.out_dir, args.score_thr, labels)) as results:
            for _, problem in track(results, 'Images', total=len(images), console=console):
                if problem:
                    problems.append(problem)
                    console.print(f'skipped: {problem}', style='red', markup=False, soft_wrap=True)
                else:
                    done += 1
    except OSError as error:
        return f'infer: {error}'
    except KeyboardInterrupt as error:
        print(
            f'infer: interrupted: {done} of {len(images)} images were processed, {args.out_dir}/detections.json',
            file=sys.stderr,
        )
        raise SystemExit(_EXIT_INTERRUPTED) from error
    print(f'{done} images were processed: {args.out_dir}/drawings/, {args.out_dir}/detections.json')
    if problems and not done:
        return f'infer: all {len(images)} images failed, which may not be their fault. The last error: {problems[-1]}'
    return f'infer: {len(problems)} of {len(images)} images were skipped, see above' if problems else None


if __name__ == '__main__':
    sys.exit(main())
