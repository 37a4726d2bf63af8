"""Detect objects on images or on a video. Write drawings, and all detections as one file in COCO's format."""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import closing

from rich.console import Console
from rich.progress import track

from mmgrc.inference import (
    CODECS,
    detect,
    detect_video,
    drawn_video,
    find_images,
    is_video,
    load_detector,
    open_video,
    select_classes,
)
from mmgrc.runs.config import load_config
from mmgrc.runs.error import InputError

# By convention of shells: terminated by SIGINT.
_EXIT_INTERRUPTED = 130


def main() -> str | int | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        'source', metavar='IMAGE|VIDEO|DIR|GLOB', help='an image, a video, a folder of images, or a quoted glob pattern'
    )
    parser.add_argument('config', metavar='CONFIG', help='config that the checkpoint was trained with')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='checkpoint of the detector')
    parser.add_argument('--out-dir', metavar='DIR', default='detections', help='folder to write to')
    parser.add_argument('--score-thr', type=float, metavar='S', default=0.3, help='minimum score of a detection')
    parser.add_argument('--classes', metavar='NAME', nargs='+', help='classes to keep (default: all)')
    parser.add_argument(
        '--video-suffix',
        metavar='SUFFIX',
        choices=CODECS,
        help=f'of the drawn video: {", ".join(CODECS)} (default: that of the video)',
    )
    parser.add_argument('--device', metavar='D', help='cpu, cuda:0, ... (default: a GPU if there is one)')
    args = parser.parse_args()
    video = None
    try:
        if not 0 <= args.score_thr <= 1:
            raise InputError(f'--score-thr {args.score_thr}: give a number from 0 to 1')
        if is_video(args.source):
            video = open_video(args.source)
            drawings: object = drawn_video(video, args.out_dir, args.video_suffix)
        else:
            images = find_images(args.source, args.out_dir)
            drawings = f'{args.out_dir}/drawings/'
        model = load_detector(load_config(args.config), args.checkpoint, args.device)
        labels = select_classes(model, args.classes)
    except (InputError, OSError) as error:
        return f'infer: {error}'
    # Treat a batch system's SIGTERM like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(stderr=True)
    if video:
        unit, total = 'frames', video.frames
        results = detect_video(model, video, drawings, args.score_thr, labels)
    else:
        unit, total = 'images', len(images)
        results = detect(model, images, args.out_dir, args.score_thr, labels)
    done, problems, ended_early = 0, [], None
    try:
        # Closing writes the detections of a run that is interrupted.
        with closing(results):
            for _, problem in track(results, unit.capitalize(), total=total, console=console):
                if problem:
                    problems.append(problem)
                    console.print(f'skipped: {problem}', style='red', markup=False, soft_wrap=True)
                else:
                    done += 1
    except InputError as error:
        ended_early = error
    except OSError as error:
        return f'infer: {error}'
    except KeyboardInterrupt as error:
        of = f' of {total}' if total else ''
        print(f'infer: interrupted: {done}{of} {unit} were processed, {args.out_dir}/detections.json', file=sys.stderr)
        raise SystemExit(_EXIT_INTERRUPTED) from error
    print(f'{done} {unit} were processed: {drawings}, {args.out_dir}/detections.json')
    total = done + len(problems)
    if problems and not done:
        return f'infer: all {total} {unit} failed, which may not be their fault. The last error: {problems[-1]}'
    if problems:
        print(f'infer: {len(problems)} of {total} {unit} were skipped, see above', file=sys.stderr)
    return f'infer: {ended_early}' if ended_early else (1 if problems else None)


if __name__ == '__main__':
    sys.exit(main())
