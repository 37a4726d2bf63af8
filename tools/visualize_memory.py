"""Draw what self-attention and memory contribute on an image, the attention to the cells, and the cache, by layer."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2

from mmgrc.datasets.images import read_image
from mmgrc.inference import describe_failure, load_detector
from mmgrc.runs.config import load_config
from mmgrc.runs.error import InputError
from mmgrc.visualization.image_file import check_image_file
from mmgrc.visualization.memory import draw_memory, view_memory


def main() -> str | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='config that the checkpoint was trained with')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='checkpoint of a GRC model')
    parser.add_argument('image', metavar='IMAGE', help='input image')
    parser.add_argument('--layers', metavar='S.B', nargs='+', help='layers as STAGE.BLOCK, from 0 (default: all)')
    parser.add_argument('--out', metavar='FILE', default='memory.png', help='image file to write')
    parser.add_argument('--device', metavar='D', help='cpu, cuda:0, ... (default: a GPU if there is one)')
    args = parser.parse_args()
    try:
        check_image_file(args.out)
        if Path(args.out).resolve() == Path(args.image).resolve():
            raise InputError(f'{args.out} is the image itself: choose another file with --out')
        image = read_image(args.image)
        model = load_detector(load_config(args.config), args.checkpoint, args.device)
        try:
            views = view_memory(model, image)
        except (cv2.error, RuntimeError, MemoryError) as error:
            # The image is too narrow, or too large.
            raise ValueError(describe_failure(args.image, error)) from error
        if args.layers:
            names = [str(view.layer) for view in views]
            if unknown := set(args.layers) - set(names):
                raise ValueError(f'there is no layer {min(unknown)}; the model has {", ".join(names)}')
            views = [view for view in views if str(view.layer) in args.layers]
        draw_memory(views, image, args.out)
    except (InputError, ValueError, OSError) as error:
        return f'visualize_memory: {error}'
    print(f'{args.out} is written')
    return None


if __name__ == '__main__':
    sys.exit(main())
