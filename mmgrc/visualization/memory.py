"""Show what the memory does on one image, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from mmdet.apis import inference_detector
from torch import Tensor, nn

from mmgrc.models.grc import GRC, MemoryAttention
from mmgrc.models.ops import use_ops

from .layers import Layer, number_layers

__all__ = ['MemoryView', 'draw_memory', 'view_memory']

_COLUMNS = ('self-attention adds', 'the memory adds', 'cells attended (uniform: 1)', 'cache, from its mean')


class MemoryView(NamedTuple):
    """The memory of one layer on one image. Maps cover the image's own tokens, without padding."""

    layer: Layer
    sigma_lambda: float
    """Mean of σ(λ) over the heads, in (0, 1)."""
    from_self: np.ndarray
    """(H, W): norm of the contribution of self-attention to each token, ``(1 - σ(λ)) O_self``."""
    from_memory: np.ndarray
    """(H, W): norm of the contribution of the memory, ``σ(λ) pad(O_mem)``."""
    attended: np.ndarray
    """(h, w): attention to each cell of the reduced cache, averaged over tokens and heads. 1 means uniform attention.
    """
    cache: np.ndarray
    """(H_m, W_m): distance of each cell of the stored cache from the mean cell. The norm of a cell alone says nothing,
    since the candidates of ``variant='code'`` are normalised."""

    @property
    def memory_share(self) -> float:
        """The memory's fraction of the two contributions, by their mean norms, in [0, 1]."""
        return float(self.from_memory.mean() / (self.from_memory.mean() + self.from_self.mean()))


@contextmanager
def _watch(layers: Sequence[GRC], seen: dict[GRC, tuple]) -> Iterator[None]:
    """Record what each layer mixes. This uses plain operations, whose parts are modules that accept hooks."""
    memory_parts: dict[MemoryAttention, tuple[Tensor, Tensor]] = {}

    def watch_memory(attention: MemoryAttention, args: tuple, o_mem: Tensor) -> None:
        cells = attention.attention_map(*args).mean(dim=(1, 2))[0]
        memory_parts[attention] = (o_mem[0], cells * len(cells))

    def watch_layer(layer: GRC, args: tuple, output: tuple) -> None:
        _, attn_out, hw_shape, cache, _ = args
        o_mem, cells = memory_parts[layer.mem_attn]
        sigma = layer.lam.sigmoid()[:, None]
        from_self, from_memory = (
            (share * part.unflatten(1, (layer.num_heads, -1))).flatten(1).norm(dim=1)
            for share, part in ((1 - sigma, attn_out[0]), (sigma, o_mem))
        )
        seen[layer] = (hw_shape, from_self, from_memory, cells, cache)

    handles = [layer.register_forward_hook(watch_layer) for layer in layers]
    handles += [layer.mem_attn.register_forward_hook(watch_memory) for layer in layers]
    try:
        with use_ops('plain'):
            yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def view_memory(model: nn.Module, image: np.ndarray) -> list[MemoryView]:
    """Run a detector on an image and record its memory.

    Args:
        model: The result of :func:`mmgrc.inference.load_detector`.
        image: (H, W, 3), BGR, uint8.

    Returns:
        A view of each layer, in the order in which they run.

    Raises:
        ValueError: The model has no memory.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, GRC)}
    if not layers:
        raise ValueError('the model has no memory: grc.stages is empty, grc.memory is False, or it is a stock backbone')
    seen: dict[GRC, tuple] = {}
    with _watch(list(layers.values()), seen):
        sample = inference_detector(model, image)
    # Rows and columns of the image within the padded batch.
    shares = [valid / padded for valid, padded in zip(sample.img_shape, sample.batch_input_shape, strict=True)]
    views = []
    for name, place in number_layers(layers).items():
        layer = layers[name]
        hw_shape, from_self, from_memory, attended, cache = seen[layer]
        rows, cols = (max(round(share * size), 1) for share, size in zip(shares, hw_shape, strict=True))
        reduced = layer.cache_size
        if layer.mem_attn.sr is not None:
            reduced = [size // stride for size, stride in zip(reduced, layer.mem_attn.sr.stride, strict=True)]
        views.append(
            MemoryView(
                place,
                float(layer.lam.sigmoid().mean()),
                from_self.unflatten(0, hw_shape)[:rows, :cols].float().cpu().numpy(),
                from_memory.unflatten(0, hw_shape)[:rows, :cols].float().cpu().numpy(),
                attended.unflatten(0, tuple(reduced)).float().cpu().numpy(),
                (cache[0] - cache[0].mean(dim=0)).norm(dim=1).unflatten(0, layer.cache_size).float().cpu().numpy(),
            )
        )
    return views


def draw_memory(views: Sequence[MemoryView], image: np.ndarray, out: str | Path) -> None:
    """Draw a row for each layer: contributions of self-attention and memory, attention to the cells, and the cache.

    Each map has its own scale, which is printed beside it.

    Args:
        views: The result of :func:`view_memory`.
        image: (H, W, 3), BGR, uint8, drawn beside the maps.
        out: Image file to write.
    """
    height, width = image.shape[:2]
    # Limit the aspect ratio, so that panels of very narrow images still fit into the figure.
    panel, slope = 2.2, np.clip(height / width, 0.1, 4)
    figure, axes = plt.subplots(
        len(views),
        1 + len(_COLUMNS),
        figsize=((1 + len(_COLUMNS)) * (panel + 0.5), len(views) * (panel * slope + 0.3) + 0.3),
        squeeze=False,
        layout='compressed',
    )
    for row, view in zip(axes, views, strict=True):
        # The cells cover the whole image, whatever their number, so all panels have the shape of the image.
        row[0].imshow(image[..., ::-1], extent=(0, width, height, 0))
        row[0].set_ylabel(
            f'stage {view.layer.stage}, block {view.layer.block}\nσ(λ) = {view.sigma_lambda:.2f}\n'
            f'memory {100 * view.memory_share:.0f} %',
            fontsize=8,
        )
        for axis, values in zip(row[1:], (view.from_self, view.from_memory, view.attended, view.cache), strict=True):
            low, high = _limits(values)
            shown = axis.imshow(values, vmin=low, vmax=high, extent=(0, width, height, 0), interpolation='nearest')
            bar = figure.colorbar(shown, ax=axis, fraction=0.05, pad=0.02, ticks=np.linspace(low, high, 3))
            bar.ax.tick_params(labelsize=7)
            bar.ax.yaxis.set_major_formatter('{x:.3g}')
        for axis in row:
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], ('image', *_COLUMNS), strict=True):
        axis.set_title(title, fontsize=9)
    figure.savefig(out, dpi=100, bbox_inches='tight')
    plt.close(figure)


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Limits of a colour scale: those of the values, but at least a tenth of their mean apart.

    Otherwise noise would look like a pattern.
    """
    low, high, mean = float(values.min()), float(values.max()), float(np.abs(values).mean())
    room = max(0.1 * mean - (high - low), 1e-9) / 2
    return low - room, high + room
