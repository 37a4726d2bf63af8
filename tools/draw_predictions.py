"""Draw the truth beside the predictions that `tools/test.py --out` wrote."""

from __future__ import annotations

import argparse
import sys

from mmdet.registry import DATASETS
from mmengine.fileio import load
from mmengine.registry import init_default_scope
from pycocotools.coco import COCO

from mmgrc.preflight import PreflightError, check_datasets, load_config
from mmgrc.visualization.detections import draw_predictions


def main() -> str | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='config that was tested')
    parser.add_argument('predictions', metavar='PREDICTIONS', help='the .pkl file of tools/test.py --out')
    parser.add_argument('--out', metavar='FILE', default='predictions.png', help='picture to write')
    parser.add_argument('--count', type=int, metavar='N', default=8, help='how many images')
    parser.add_argument('--score-thr', type=float, metavar='S', default=0.5, help='least score of a prediction')
    args = parser.parse_args()
    try:
        config = load_config(args.config)
        check_datasets(config, ('test_dataloader',))
        predictions = load(args.predictions)
    except (PreflightError, OSError) as error:
        return f'draw_predictions: {error}'
    if args.count < 1 or not predictions:
        return f'draw_predictions: there is nothing to draw: {len(predictions)} predictions, --count {args.count}'
    init_default_scope(config.get('default_scope') or 'mmdet')
    dataset = DATASETS.build(dict(config.test_dataloader.dataset, lazy_init=True))
    draw_predictions(
        predictions,
        COCO(dataset.ann_file),
        dataset.metainfo['classes'],
        dataset.metainfo['palette'],
        args.out,
        args.count,
        args.score_thr,
    )
    print(f'{args.out} is written')
    return None


if __name__ == '__main__':
    sys.exit(main())
