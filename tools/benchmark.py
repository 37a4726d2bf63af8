"""Compare two models: time, throughput, peak memory, parameters and FLOPs."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, fields

from rich.console import Console
from rich.table import Table

from mmgrc.models.ops import describe_ops
from mmgrc.runs.benchmark import DTYPES, Options, Result, compare
from mmgrc.runs.error import InputError


def _table(first: Result, second: Result) -> Table:
    table = Table('')
    for title in ('A', 'B', 'A / B'):
        table.add_column(title, justify='right')

    def row(title: str, text: str, left: float, right: float) -> None:
        table.add_row(title, text.format(left), text.format(right), f'{left / right:.3f}' if right else '-')

    row('median, s', '{:.3f}', first.seconds.median, second.seconds.median)
    row('fastest, s', '{:.3f}', first.seconds.fastest, second.seconds.fastest)
    row('slowest, s', '{:.3f}', first.seconds.slowest, second.seconds.slowest)
    row('images / s', '{:.2f}', first.images_per_second, second.images_per_second)
    row('peak memory, MB', '{:.0f}', first.peak_memory / 1e6, second.peak_memory / 1e6)
    row('parameters, M', '{:.2f}', first.parameters / 1e6, second.parameters / 1e6)
    row('forward, GFLOP', '{:.1f}', first.flops / 1e9, second.flops / 1e9)
    return table


def main() -> str | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--config', metavar='CONFIG', required=True, help='the model to measure')
    parser.add_argument('--against', metavar='CONFIG', default='stock', help="another config, or 'stock'")
    parser.add_argument('--mode', choices=('eval', 'train'), default='eval', help='forward, or forward and backward')
    parser.add_argument('--part', choices=('backbone', 'detector'), default='backbone')
    parser.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'), default=(800, 1344), help='pixels')
    parser.add_argument('--batch', type=int, metavar='N', default=1, help='batch size')
    parser.add_argument('--dtype', choices=tuple(DTYPES), default='fp32')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--compile', action='store_true', help='torch.compile both')
    parser.add_argument('--runs', type=int, metavar='N', default=5, help='timed runs of each')
    parser.add_argument('--threads', type=int, metavar='N', help='CPU threads; default: all')
    parser.add_argument('--json', metavar='FILE', help='also write the figures to this file')
    args = parser.parse_args()
    options = Options(**{field.name: getattr(args, field.name) for field in fields(Options)})
    try:
        results = compare(args.config, args.against, options)
    except InputError as error:
        return f'benchmark: {error}'
    print(f'A: {results[0].name}\nB: {results[1].name}\noperations: {describe_ops()}')
    Console().print(_table(*results))
    if args.json:
        with open(args.json, 'w') as file:
            json.dump({'options': asdict(options), 'results': [asdict(r) for r in results]}, file, indent=2)
    return None


if __name__ == '__main__':
    sys.exit(main())
