"""Write a detector as one ONNX file: normalisation, network, NMS and masks, in operators of the ONNX standard."""

from __future__ import annotations

import argparse
import sys

from mmengine.config import DictAction

from mmgrc.export import check_libraries, check_supported, export_onnx
from mmgrc.inference import load_detector
from mmgrc.runs.config import build_model, load_config
from mmgrc.runs.error import InputError


def main() -> str | None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', metavar='CONFIG', help='config that the checkpoint was trained with')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='checkpoint of the detector')
    parser.add_argument('--out', metavar='FILE', default='detector.onnx', help='file to write (default: detector.onnx)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='entries of the config to change, such as model.test_cfg.rcnn.score_thr=0.3',
    )
    args = parser.parse_args()
    try:
        check_libraries()
        config = load_config(args.config, args.cfg_options)
        check_supported(build_model(config))
        model = load_detector(config, args.checkpoint, 'cpu')
        export_onnx(model, args.out)
    except (InputError, OSError) as error:
        return f'export_onnx: {error}'
    print(f'{args.out}: {type(model).__name__} with {len(model.dataset_meta["classes"])} classes')
    return None


if __name__ == '__main__':
    sys.exit(main())
