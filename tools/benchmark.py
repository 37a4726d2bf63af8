"""Compare two models: time, throughput, peak memory, parameters and FLOPs. With lists, compare each combination."""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import sys
from dataclasses import asdict, fields

import torch
from rich.console import Console
from rich.table import Table

from mmgrc.models.ops import describe_ops
from mmgrc.runs.benchmark import DTYPES, Options, Result, check_comparison, compare
from mmgrc.runs.error import InputError
from mmgrc.runs.preflight import check_output_file


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


def _machine(device: str) -> str:
    name = torch.cuda.get_device_name(device) if torch.device(device).type == 'cuda' else platform.machine()
    return f'{name}, torch {torch.__version__}'


def _markdown(machine: str, comparisons: list[tuple[Options, tuple[Result, Result]]]) -> str:
    lines = [
        f'{machine}. Median seconds and peak memory, A / B.',
        '',
        '| A | B | pass | type | images | time | memory |',
        '|---|---|---|---|---|---|---|',
    ]
    for options, (a, b) in comparisons:
        times, peaks = (a.seconds.median, b.seconds.median), (a.peak_memory / 1e9, b.peak_memory / 1e9)
        # A small model may take no memory that a CPU's process did not have before.
        cells = [
            f'{left / right:.3f} ({left:.4f} / {right:.4f} {unit})' if right else '-'
            for (left, right), unit in ((times, 's'), (peaks, 'GB'))
        ]
        size = f'{options.batch} x {options.size[0]} x {options.size[1]}'
        lines.append(f'| {" | ".join([a.name, b.name, options.mode, options.dtype, size, *cells])} |')
    return '\n'.join([*lines, ''])


def main() -> str | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--config', metavar='CONFIG', nargs='+', required=True, help='the model to measure')
    parser.add_argument(
        '--against',
        metavar='CONFIG',
        nargs='+',
        default=['stock'],
        help="another config, 'stock' (MMDetection's class) or 'no-memory' (grc=dict(stages=()))",
    )
    parser.add_argument(
        '--mode', choices=('eval', 'train'), nargs='+', default=['eval'], help='forward, or forward and backward'
    )
    parser.add_argument('--part', choices=('backbone', 'detector'), default='backbone')
    parser.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'), default=(800, 1344), help='pixels')
    parser.add_argument('--batch', type=int, metavar='N', default=1, help='batch size')
    parser.add_argument('--dtype', choices=tuple(DTYPES), nargs='+', default=['fp32'])
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--compile', action='store_true', help='torch.compile both')
    parser.add_argument('--runs', type=int, metavar='N', default=5, help='timed runs of each')
    parser.add_argument('--threads', type=int, metavar='N', help='CPU threads; default: all')
    parser.add_argument('--json', metavar='FILE', help='also write the figures to this file')
    parser.add_argument('--markdown', metavar='FILE', help='also write a table to this file')
    args = parser.parse_args()
    kept = {field.name: getattr(args, field.name) for field in fields(Options)}
    planned = [
        (config, against, Options(**{**kept, 'mode': mode, 'dtype': dtype}))
        for config, against, mode, dtype in itertools.product(args.config, args.against, args.mode, args.dtype)
    ]
    comparisons: list[tuple[Options, tuple[Result, Result]]] = []
    too_large = []
    try:
        for comparison in planned:
            check_comparison(*comparison)
        for file in filter(None, (args.json, args.markdown)):
            check_output_file(file)
    except InputError as error:
        return f'benchmark: {error}'
    for config, against, options in planned:
        try:
            results = compare(config, against, options)
        except torch.cuda.OutOfMemoryError:
            too_large.append(f'{config} against {against}, {options.mode}, {options.dtype}')
            continue
        print(f'A: {results[0].name}\nB: {results[1].name}')
        print(f'{options.mode}, {options.dtype}, operations: {describe_ops()}', flush=True)
        Console().print(_table(*results))
        comparisons.append((options, results))
        # After each comparison, so that an interrupted run keeps those that it has made.
        machine = _machine(args.device)
        if args.json:
            entries = [{'options': asdict(o), 'results': [asdict(r) for r in rs]} for o, rs in comparisons]
            with open(args.json, 'w', encoding='utf-8') as file:
                json.dump({'machine': machine, 'comparisons': entries}, file, indent=2)
        if args.markdown:
            with open(args.markdown, 'w', encoding='utf-8') as file:
                file.write(_markdown(machine, comparisons))
    return f'benchmark: the GPU has too little memory for: {"; ".join(too_large)}' if too_large else None


if __name__ == '__main__':
    sys.exit(main())
