"""Names and styles of the layers with a memory, the same in all figures."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

import matplotlib.pyplot as plt

__all__ = ['Layer', 'number_layers', 'stage_style']

# `layers.STAGE.1.BLOCK` in PVT, `stages.STAGE.blocks.BLOCK` in Swin.
_NAME = re.compile(r'(?:layers\.(\d+)\.1|stages\.(\d+)\.blocks)\.(\d+)')
_LINES = ('-', '--', '-.', ':')


class Layer(NamedTuple):
    """The position of a layer in its backbone. Both numbers count from 0, as in ``grc.stages``."""

    stage: int
    block: int

    def __str__(self) -> str:
        return f'{self.stage}.{self.block}'


def number_layers(names: Iterable[str]) -> dict[str, Layer]:
    """Find the positions of the layers to which modules or tensors belong.

    Args:
        names: A name of each layer of one backbone, in any order.

    Returns:
        Names and layers, in the order in which they run. Only blocks with a memory are counted.

    Raises:
        ValueError: A name does not belong to a GRC backbone.
    """
    places = {}
    for name in names:
        match = _NAME.search(name)
        if match is None:
            raise ValueError(f'{name!r} is not a layer of a GRC backbone')
        places[name] = (int(match[1] or match[2] or 0), int(match[3]))
    ordered = sorted(places, key=places.get)
    # Not the index in the name: in PVT the position embedding precedes the blocks, in PVTv2 nothing does.
    return {
        name: Layer(stage, block)
        for stage, group in groupby(ordered, key=lambda name: places[name][0])
        for block, name in enumerate(group)
    }


def stage_style(stage: int) -> dict:
    """Colour and line style of a stage, distinct in greyscale too."""
    return {'color': plt.get_cmap('viridis')(min(stage, 3) * 0.28), 'linestyle': _LINES[stage % len(_LINES)]}
