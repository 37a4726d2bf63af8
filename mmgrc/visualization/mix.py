"""Plot how much of each layer's output comes from its memory: σ(λ), from checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from mmgrc.models.convert import checkpoint_state
from mmgrc.runs.checkpoint import read_checkpoint

from .layers import Layer, number_layers, stage_style
from .text import write_plainly

__all__ = ['draw_lambda', 'plot_lambda', 'read_lambda']

_KEY = '.grc.lam'


def read_lambda(path: str | Path) -> dict[Layer, np.ndarray]:
    """Read σ(λ) from a checkpoint.

    Args:
        path: A checkpoint of a GRC model.

    Returns:
        For each layer, in the order in which they run, the heads' σ(λ), in (0, 1).

    Raises:
        OSError: There is no such file.
        ValueError: It is not a checkpoint, or has no λ.
    """
    if not Path(path).expanduser().is_file():
        raise FileNotFoundError(f'there is no checkpoint {path}')
    state = checkpoint_state(read_checkpoint(path))
    layers = number_layers(key for key in state if key.endswith(_KEY))
    if not layers:
        raise ValueError(
            f'{path} has no λ (no tensor is named *{_KEY}): it belongs to a model without a memory, or to the '
            'published code; convert the latter with tools/convert_checkpoint.py'
        )
    return {layer: state[key].float().sigmoid().numpy() for key, layer in layers.items()}


def draw_lambda(axis: Axes, shares: Mapping[Layer, np.ndarray], title: str) -> None:
    """Draw σ(λ) of each layer: a dot for a head, a bar for the mean of a layer.

    Args:
        axis: The axes to draw on.
        shares: The result of :func:`read_lambda`.
        title: Title of the panel.
    """
    layers = list(shares)
    for place, layer in enumerate(layers):
        colour = stage_style(layer.stage)['color']
        heads = shares[layer]
        axis.bar(place, heads.mean(), width=0.75, color=colour, alpha=0.35)
        # Spread the heads horizontally, so that equal values stay visible.
        offsets = np.linspace(-0.3, 0.3, len(heads)) if len(heads) > 1 else [0]
        axis.plot(place + np.asarray(offsets), heads, 'o', markersize=3, color=colour)
    axis.axhline(0.5, color='0.4', linewidth=0.8, linestyle=':')
    place = 0
    for stage, group in groupby(layers, key=lambda layer: layer.stage):
        size = len(list(group))
        if place:
            axis.axvline(place - 0.5, color='0.8', linewidth=0.8)
        axis.text(
            place + size / 2 - 0.5, 0.97, f'stage {stage}' if size > 1 else stage, ha='center', va='top', fontsize=8
        )
        place += size
    # Only as many labels as fit.
    step = -(-len(layers) // 16)
    axis.set_xticks(range(0, len(layers), step), [str(layer.block) for layer in layers[::step]], fontsize=8)
    axis.set(xlim=(-0.6, len(layers) - 0.4), ylim=(0, 1), xlabel='block of the stage', ylabel='σ(λ)')
    axis.set_title(title, fontsize=10)
    write_plainly(axis)


def plot_lambda(checkpoints: Sequence[str | Path], out: str | Path, names: Sequence[str] | None = None) -> None:
    """Draw σ(λ) of several checkpoints side by side, as in the paper's figure.

    Above the dotted line a layer takes more from its memory than from the image.

    Args:
        checkpoints: Checkpoints of GRC models.
        out: Image file to write.
        names: Titles of the panels. By default, the paths.

    Raises:
        OSError: A file does not exist.
        ValueError: A file is not a checkpoint of a GRC model, or the numbers of names and checkpoints differ.
    """
    names = [str(path) for path in checkpoints] if names is None else names
    if len(names) != len(checkpoints):
        raise ValueError(f'{len(checkpoints)} checkpoints and {len(names)} names: give one name for each')
    shares = [read_lambda(path) for path in checkpoints]
    widths = [max(3.2, 0.3 * len(layers)) for layers in shares]
    figure, axes = plt.subplots(
        1, len(shares), figsize=(sum(widths) + 0.6, 3.2), width_ratios=widths, squeeze=False, sharey=True
    )
    for axis, layers, name in zip(axes[0], shares, names, strict=True):
        # Long paths usually differ at the end.
        draw_lambda(axis, layers, name if len(name) <= 36 else f'...{name[-33:]}')
        axis.label_outer()
    figure.tight_layout()
    figure.savefig(out, dpi=130)
    plt.close(figure)
