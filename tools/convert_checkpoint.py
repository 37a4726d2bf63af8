"""Convert a checkpoint to the keys of the GRC backbones.

It is a PVT (original PVT, MMDetection, or the published GRC code), or with --config any backbone, such as that of a
classifier from tools/pretrain.py. Position tables and caches then get the sizes of that detector's backbone. Use the
result as `model.backbone.init_cfg.checkpoint`. A detector's caches start empty unless
`model.backbone.grc.keep_caches=True`.

With --resize-caches, resize the caches of a detector's checkpoint to other `grc.cache_sizes` instead. With
--replace-caches, replace their content, to see what it is worth. Use these results for testing, or as `load_from`.
"""

from __future__ import annotations

import argparse
import sys

import torch

from mmgrc.engine.files import open_atomically
from mmgrc.models.backbones import CachedBackbone
from mmgrc.models.convert import convert_checkpoint, replace_caches, resize_caches
from mmgrc.runs.checkpoint import read_checkpoint
from mmgrc.runs.config import build_model, load_config
from mmgrc.runs.error import InputError, first_few
from mmgrc.runs.preflight import check_output_file


def main() -> str | None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('src', metavar='SRC', help='checkpoint to read')
    parser.add_argument('dst', metavar='DST', help='checkpoint to write')
    caches = parser.add_mutually_exclusive_group()
    caches.add_argument('--config', metavar='CONFIG', help='config of the detector that the backbone is for')
    caches.add_argument(
        '--resize-caches',
        nargs=2,
        metavar=('OLD', 'NEW'),
        help='configs: the one that SRC was trained with, and the one with other grc.cache_sizes',
    )
    caches.add_argument(
        '--replace-caches',
        metavar='SOURCE',
        help="'zeros', 'shuffled' (the cells of each cache in a random order), or another checkpoint of the same model",
    )
    args = parser.parse_args()
    convert = _resize if args.resize_caches else _replace if args.replace_caches else _convert
    try:
        check_output_file(args.dst)
        convert(args, read_checkpoint(args.src))
    except (ValueError, OSError, RuntimeError, InputError) as error:
        return f'convert_checkpoint: {error}'
    return None


def _save(args: argparse.Namespace, meta: dict, state: dict[str, torch.Tensor]) -> None:
    with open_atomically(args.dst) as file:
        torch.save({'meta': {**meta, 'source': args.src}, 'state_dict': state}, file)


def _convert(args: argparse.Namespace, checkpoint: dict) -> None:
    backbone = None
    if args.config:
        backbone = build_model(load_config(args.config)).backbone
        if not isinstance(backbone, CachedBackbone):
            raise ValueError(f'the backbone of {args.config} is a {type(backbone).__name__}, not one of mmgrc')
    state, report = convert_checkpoint(checkpoint, backbone)
    _save(args, {}, state)
    print(f'{args.dst}: {report}')
    if caches := sum(key.endswith('.grc.cache') for key in state):
        print(f'  It has {caches} caches. A detector starts with empty ones unless grc.keep_caches=True.')
    for name in ('missing', 'unused', 'resized'):
        if keys := getattr(report, name):
            print(f'  {name}: {first_few(keys, 8)}')


def _resize(args: argparse.Namespace, checkpoint: dict) -> None:
    configs = [load_config(path) for path in args.resize_caches]
    state, resized = resize_caches(checkpoint, *map(build_model, configs))
    if not resized:
        raise ValueError('the two configs have the same grc.cache_sizes: there is nothing to resize')
    _save(args, {**checkpoint.get('meta', {}), 'cfg': configs[1].pretty_text}, state)
    print(f'{args.dst}: {len(resized)} caches resized, {len(state) - len(resized)} other tensors unchanged')


def _replace(args: argparse.Namespace, checkpoint: dict) -> None:
    source = args.replace_caches
    state, replaced = replace_caches(checkpoint, source if source in ('zeros', 'shuffled') else read_checkpoint(source))
    _save(args, checkpoint.get('meta', {}), state)
    print(
        f'{args.dst}: {len(replaced)} caches replaced ({source}), {len(state) - len(replaced)} other tensors unchanged'
    )


if __name__ == '__main__':
    sys.exit(main())
