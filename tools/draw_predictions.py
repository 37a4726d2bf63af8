"""Draw the ground truth beside the predictions of `tools/test.py --out`."""

from __future__ import annotations

import argparse
import sys

from mmgrc.runs.config import load_config
from mmgrc.runs.error import InputError
from mmgrc.visualization.detections import draw_predictions
from mmgrc.visualization.image_file import check_image_file
from mmgrc.visualization.predictions import read_predictions, read_test_set


def main() -> str | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='config that was tested')
    parser.add_argument('predictions', metavar='PREDICTIONS', help='the .pkl file of tools/test.py --out')
    parser.add_argument('--out', metavar='FILE', default='predictions.png', help='image file to write')
    parser.add_argument('--count', type=int, metavar='N', default=8, help='number of images')
    parser.add_argument('--score-thr', type=float, metavar='S', default=0.5, help='minimum score of a prediction')
    args = parser.parse_args()
    if args.count < 1:
        return f'draw_predictions: --count {args.count}: give 1 or more'
    try:
        check_image_file(args.out)
        test_set = read_test_set(load_config(args.config))
        predictions = read_predictions(args.predictions)
        notes = draw_predictions(predictions, *test_set, args.out, args.count, args.score_thr)
    except (InputError, ValueError, OSError) as error:
        return f'draw_predictions: {error}'
    for note in notes:
        print(f'left out: {note}')
    print(f'{args.out} is written')
    return None


if __name__ == '__main__':
    sys.exit(main())
