"""Print what was converted, on one screen."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .dataset import Converted

__all__ = ['print_summary']

_CLASSES = 15
"""This many classes are shown, those with the most objects."""


def print_summary(converted: Converted, console: Console) -> None:
    """Print images, objects and classes of each split, what was left out, and what to know."""
    splits = converted.splits
    table = Table(title=f'Converted from {converted.format}', title_justify='left')
    table.add_column('')
    for split in splits:
        table.add_column(split, justify='right')
    table.add_row('images', *(str(count.images) for count in splits.values()))
    table.add_row('images without objects', *(str(count.empty) for count in splits.values()))
    table.add_row('objects', *(str(sum(count.objects.values())) for count in splits.values()))
    table.add_row('objects with a mask', *(str(count.masks) for count in splits.values()))
    if any(count.crowds for count in splits.values()):
        table.add_row('crowds (ignored)', *(str(count.crowds) for count in splits.values()))
    names = list(next(iter(splits.values())).objects)
    totals = {name: sum(count.objects[name] for count in splits.values()) for name in names}
    shown = sorted(names, key=lambda name: -totals[name])[:_CLASSES]
    table.add_section()
    for name in shown:
        table.add_row(escape(name), *(str(count.objects[name]) for count in splits.values()))
    if len(names) > len(shown):
        rest = [name for name in names if name not in shown]
        numbers = (sum(count.objects[name] for name in rest) for count in splits.values())
        table.add_row(f'{len(rest)} more classes', *map(str, numbers))
    console.print(table)
    if converted.skipped:
        left_out = Table(title='Left out', title_justify='left')
        for column, justify in (('what', 'left'), ('number', 'right'), ('for example', 'left')):
            left_out.add_column(column, justify=justify)
        for reason, where in converted.skipped.items():
            left_out.add_row(escape(reason), str(len(where)), escape(where[0]))
        console.print(left_out)
    for note in converted.notes:
        console.print(f'Note: {note}', markup=False, highlight=False, soft_wrap=True)
