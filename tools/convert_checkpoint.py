"""Bring a PVT checkpoint to the keys of the GRC backbones: original PVT, MMDetection, or the published GRC code.

What is written serves as `model.backbone.init_cfg.checkpoint`.
"""

from __future__ import annotations

import argparse
import sys

import torch

from mmgrc.checkpoint import read_checkpoint
from mmgrc.models.convert import convert_checkpoint


def main() -> str | None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('src', metavar='SRC', help='checkpoint to read')
    parser.add_argument('dst', metavar='DST', help='checkpoint to write')
    args = parser.parse_args()
    try:
        state, report = convert_checkpoint(read_checkpoint(args.src))
        torch.save({'meta': {'source': args.src}, 'state_dict': state}, args.dst)
    except (ValueError, OSError, RuntimeError) as error:
        return f'convert_checkpoint: {error}'
    print(f'{args.dst}: {report}')
    for name in ('missing', 'unused'):
        if keys := getattr(report, name):
            print(f'  {name}: {", ".join(keys[:8])}{", ..." if len(keys) > 8 else ""}')
    return None


if __name__ == '__main__':
    sys.exit(main())
