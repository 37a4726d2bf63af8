"""Convert checkpoints of other code to the keys of the GRC backbones, and our own to other cache sizes."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmdet.models.backbones.pvt import AbsolutePositionEmbedding, pvt_convert
from mmdet.models.backbones.swin import swin_converter
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import Tensor, nn

from .grc import GRC
from .resampling import make_resampling

__all__ = [
    'LoadReport',
    'backbone_state',
    'checkpoint_state',
    'convert_checkpoint',
    'convert_pvt',
    'convert_swin',
    'load_converted',
    'match_converted',
    'replace_caches',
    'resize_caches',
    'start_silently',
]

# Names in the published GRC module, and our names below the attention's `grc`.
_PUBLISHED_GRC_NAMES = {
    'linear_update': 'update_gate',
    'linear_reset': 'reset_gate',
    'linear_add': 'candidate',
    'Norm1': 'candidate_norm',
    'attn_mem': 'mem_attn',
    'pos_emb': 'pos_conv',
    'lam': 'lam',
    'gr_cache': 'cache',
}
_PUBLISHED_GRC_KEY = re.compile(rf'block(\d+)\.(\d+)\.attn\.({"|".join(_PUBLISHED_GRC_NAMES)})(\..+)?')


class LoadReport(NamedTuple):
    """What happened to the tensors of a checkpoint and of a model."""

    loaded: list[str]
    """Keys of the model that the checkpoint filled."""
    missing: list[str]
    """Keys of the stock backbone that the checkpoint lacks."""
    new: list[str]
    """Keys of the memory that the checkpoint lacks. Their values are new."""
    unused: list[str]
    """Keys of the checkpoint that are not in the model."""
    resized: list[str]
    """Keys of position tables and caches that have another size in the checkpoint."""
    emptied: list[str]
    """Keys of caches that are in the checkpoint, but not taken."""

    def __str__(self) -> str:
        text = (
            f'{len(self.loaded)} tensors loaded, {len(self.missing)} missing, {len(self.new)} new (the memory), '
            f'{len(self.unused)} of the checkpoint unused'
        )
        caches = sum(key.endswith('.grc.cache') for key in self.resized)
        if self.resized:
            text += f', {len(self.resized)} resized ({len(self.resized) - caches} position tables, {caches} caches)'
        if self.emptied:
            text += f'. Its {len(self.emptied)} caches are not taken and start empty (grc.keep_caches=True takes them)'
        return text


def checkpoint_state(checkpoint: Mapping) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, without the prefix of a distributed wrapper.

    Args:
        checkpoint: The content of a checkpoint file: a state dict, alone or under ``state_dict`` or ``model``.
    """
    state = checkpoint.get('state_dict', checkpoint.get('model', checkpoint))
    return {key.removeprefix('module.'): value for key, value in state.items() if isinstance(value, Tensor)}


def backbone_state(checkpoint: Mapping) -> dict[str, Tensor]:
    """Return only the tensors of the backbone, see :func:`checkpoint_state`."""
    state = checkpoint_state(checkpoint)
    prefix = 'backbone.'
    if any(key.startswith(prefix) for key in state):
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return state


def convert_pvt(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a PVT or PVTv2 state dict to MMDetection's keys.

    Args:
        state: Keys of the original PVT, of MMDetection, or of the published GRC code. The published cache of the last
            stage begins with the class token. It is dropped, like PVT's own class token.
    """
    state = {key.replace('.attn.attn_self_func.', '.attn.'): value for key, value in state.items()}
    # In MMDetection's layers the position embedding has the number 0.
    offset = int(any(key.startswith('pos_embed') for key in state))
    memory = {}
    for key in list(state):
        if match := _PUBLISHED_GRC_KEY.fullmatch(key):
            stage, block, name, rest = match.groups()
            value = state.pop(key)
            if name == 'gr_cache' and stage == '4' and value.shape[1] == 50:  # 1 class token + 7 * 7
                value = value[:, 1:]
            prefix = f'layers.{int(stage) - 1}.1.{int(block) + offset}.attn.grc.'
            memory[prefix + _PUBLISHED_GRC_NAMES[name] + (rest or '')] = value
    return {**pvt_convert(state), **memory}


def convert_swin(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a Swin state dict to MMDetection's keys.

    Args:
        state: Keys of the original Swin, or of MMDetection.
    """
    if any(key.startswith('stages.') for key in state):
        return dict(state)
    # The masks and the last norm belong to the classifier. MMDetection's converter adds a prefix.
    kept = {k: v for k, v in state.items() if not k.endswith('attn_mask') and not k.startswith('norm.')}
    return {key.removeprefix('backbone.'): value for key, value in swin_converter(kept).items()}


def _fit_sizes(model: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """Resize the position tables and caches of a state dict to those of a model, in place.

    Position tables are interpolated as PVT and Swin do it. A cell of a cache becomes the mean of the cells that it
    covers. Tensors with another number of channels are left for the loader to refuse.

    Returns:
        The keys that were resized.

    Raises:
        ValueError: The rows and columns of a table or cache of the checkpoint cannot be told from its length.
    """
    own, resized = model.state_dict(), []
    for key, size in _grids(model, own).items():
        value = state.get(key)
        if value is None or value.shape == own[key].shape or value.ndim != own[key].ndim:
            continue
        bias_table = key.endswith('relative_position_bias_table')
        tokens = value[None] if bias_table else value
        if tokens.shape[2] != own[key].shape[-1]:
            continue
        grid = tokens.unflatten(1, _old_grid(key, tokens.shape[1], size))
        if key.endswith('.grc.cache'):
            fitted = _resize_cache(grid, size)
        else:
            mode = 'bilinear' if key.endswith('.pos_embed') else 'bicubic'
            fitted = F.interpolate(grid.permute(0, 3, 1, 2), size=size, mode=mode).flatten(2).transpose(1, 2)
        state[key] = fitted[0] if bias_table else fitted
        resized.append(key)
    for key, value in own.items():
        # A constant of the window's size.
        if key.endswith('relative_position_index') and key in state:
            state[key] = value
    return resized


def _grids(model: nn.Module, own: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Rows and columns of the position tables and caches of a backbone, by key."""
    grids: dict[str, tuple[int, int]] = {
        f'{name}.pos_embed': module.pos_shape
        for name, module in model.named_modules()
        if isinstance(module, AbsolutePositionEmbedding)
    }
    grids.update(_cache_sizes(model))
    for key, value in own.items():
        if key.endswith('relative_position_bias_table'):
            side = math.isqrt(value.shape[0])
            grids[key] = (side, side)
    if 'absolute_pos_embed' in own:
        grids['absolute_pos_embed'] = model.pretrain_grid
    return grids


def _cache_sizes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Rows and columns of the caches of a model, by key."""
    return {f'{name}.cache': layer.cache_size for name, layer in model.named_modules() if isinstance(layer, GRC)}


def _resize_cache(cache: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample a cache (1, rows, columns, D_m) to another grid. Returns (1, T_m, D_m)."""
    old = (cache.shape[1], cache.shape[2])
    return make_resampling(torch.tensor([old], dtype=cache.dtype), old, old, size)(cache)


def _old_grid(key: str, length: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a grid of ``length`` cells: those of a square, or the proportions of ``size``."""
    side, scale = math.isqrt(length), math.sqrt(length / (size[0] * size[1]))
    for rows, cols in ((side, side), (round(size[0] * scale), round(size[1] * scale))):
        if rows * cols == length:
            return rows, cols
    raise ValueError(
        f'{key}: the checkpoint has {length} cells, which are no square and do not have the proportions of {size[0]} x '
        f'{size[1]}, as the model has it. Pre-train with square images, or with those of the model'
    )


def match_converted(
    model: nn.Module,
    checkpoint: Mapping,
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None,
    with_caches: bool = True,
) -> tuple[dict[str, Tensor], LoadReport]:
    """Find the tensors of a checkpoint that fit a backbone, without loading them.

    Args:
        model: The backbone.
        checkpoint: See :func:`backbone_state`.
        convert: Converts the keys to the model's. None: they are the model's already.
        with_caches: Whether to take the caches too. Otherwise those of the model do not change.

    Returns:
        The tensors that fit, with position tables and caches in the model's sizes, and a report about the rest.

    Raises:
        ValueError: No tensor of the checkpoint is in the model, or a tensor has another shape there.
    """
    state = backbone_state(checkpoint)
    if convert is not None:
        state = convert(state)
    own = model.state_dict()
    emptied = [] if with_caches else [key for key in state if key.endswith('.grc.cache') and key in own]
    if not with_caches:
        state = {key: value for key, value in state.items() if not key.endswith('.grc.cache')}
    resized = _fit_sizes(model, state)
    absent = [key for key in own if key not in state]
    report = LoadReport(
        loaded=[key for key in own if key in state],
        missing=[key for key in absent if '.grc.' not in key],
        new=[key for key in absent if '.grc.' in key and key not in emptied],
        resized=resized,
        emptied=emptied,
        unused=[key for key in state if key not in own],
    )
    if not report.loaded:
        found = ', '.join(list(state)[:3]) or 'nothing'
        raise ValueError(
            f'no tensor of the checkpoint fits {type(model).__name__}. It has {found} ...; the model expects '
            f'{", ".join(list(own)[:3])} ...'
        )
    for key in report.loaded:
        # A cache of another size has its own error, which is raised when it is loaded.
        if state[key].shape != own[key].shape and not key.endswith('.grc.cache'):
            raise ValueError(
                f'{key}: the checkpoint has the shape {tuple(state[key].shape)}, {type(model).__name__} has '
                f'{tuple(own[key].shape)}. It is a checkpoint of a model of another size.'
            )
    return {key: state[key] for key in report.loaded}, report


def load_converted(
    model: nn.Module,
    checkpoint: Mapping,
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None,
    with_caches: bool = True,
) -> LoadReport:
    """Load the tensors that :func:`match_converted` finds, and log the report. Arguments and errors are the same."""
    state, report = match_converted(model, checkpoint, convert, with_caches)
    # The model's own values fill the gaps, so that loading does not warn about what the report says. Loading then sees
    # no missing key, so the silent start is decided here.
    start_silently(model, state)
    model.load_state_dict({**model.state_dict(), **state})
    # An unused block belongs to a deeper model. Other unused tensors, such as a classifier's head, are expected.
    blocks = [key for key in report.unused if key.startswith(('layers.', 'stages.'))]
    deeper = f' Unused blocks, such as {blocks[0]}: are these the weights of a larger model?' if blocks else ''
    level = logging.WARNING if report.missing or report.emptied or report.resized or blocks else logging.INFO
    print_log(f'{type(model).__name__}: {report}{"." if deeper else ""}{deeper}', logger='current', level=level)
    return report


@torch.no_grad()
def start_silently(backbone: nn.Module, state: dict[str, Tensor], prefix: str = '') -> None:
    """Let new memories change nothing at first, when stock weights are loaded or initialised.

    With ``grc.start='silent'`` this is done for each attention layer whose stock output projection is in ``state``, if
    ``state`` has no tensor of its memory. The last layers of the memory become zero. The output projection in ``state``
    is divided, head by head, by 1 - σ(λ), its weight in the mix. The layer then computes the same function as the stock
    layer, in training too. λ keeps its published value, and there is neither a new key nor more to compute. The whole
    memory learns: λ and the zero layers from the first step, and the layers before them from the second step.

    A small σ(λ) would only approximate the stock function. It would not affect the positional convolution, and it would
    scale down every gradient of the memory. The division changes the checkpoint's values instead of the model's, so
    that loading a second time gives the same weights.

    Args:
        backbone: A :class:`~mmgrc.models.backbones.CachedBackbone`.
        state: The tensors to load. Those that change are replaced, not modified in place.
        prefix: The prefix of their keys before the backbone's keys.
    """
    layers, silent, frozen = backbone.added_layers(), 0, []
    for name, grc in layers.items():
        attention = name.removesuffix('.grc')
        projection = f'{attention}.{backbone.get_submodule(attention).output_projection}'
        layer = backbone.get_submodule(projection)
        own = {f'{prefix}{projection}.{key}': value for key, value in layer.named_parameters()}
        # Tensors of another shape are left for the loader to refuse.
        stock = all(key in state and state[key].shape == value.shape for key, value in own.items())
        if not stock or any(key.startswith(f'{prefix}{name}.') for key in state):
            continue
        if backbone.grc.start != 'silent':
            frozen += [] if any(value.requires_grad for value in grc.parameters()) else [name]
            continue
        share = grc.silence()
        for key, value in own.items():
            # In the model's precision, whatever the checkpoint's. Each row of a weight gives one channel.
            state[key] = (state[key].to(value).t() / share).t()
        silent += 1
    if silent:
        print_log(
            f'{type(backbone).__name__}: {silent} of {len(layers)} GRC layers start silent: they do not change what '
            'the stock layers compute until they have learned',
            logger='current',
            level=logging.INFO,
        )
    if frozen:
        print_log(
            f'{type(backbone).__name__}: {len(frozen)} of {len(layers)} GRC layers are new, and frozen with random '
            f'weights ({frozen[0]}, ...): they change what the stock weights compute, and never learn. Set '
            'grc.start=silent, or leave the frozen stages out of grc.stages',
            logger='current',
            level=logging.WARNING,
        )


def pvt_config(state: Mapping[str, Tensor]) -> dict:
    """Infer the config of the GRC backbone from the shapes of a converted PVT state dict.

    Args:
        state: A state dict with MMDetection's keys.

    Raises:
        ValueError: It is not a PVT.
    """
    stages: list[tuple[str, int]] = []
    while (patch := state.get(f'layers.{len(stages)}.0.projection.weight')) is not None:
        stages.append((f'layers.{len(stages)}.1.', patch.shape[0]))
    blocks = [
        sorted({k.split('.')[3] for k in state if k.startswith(p) and '.norm1.' in k}, key=int) for p, _ in stages
    ]
    if not stages or not all(blocks):
        raise ValueError(f'this is not a checkpoint of a PVT. It has {", ".join(list(state)[:3]) or "nothing"} ...')
    first = [f'{prefix}{numbers[0]}.' for (prefix, _), numbers in zip(stages, blocks, strict=True)]
    dims = [dim for _, dim in stages]
    config: dict = {
        'type': 'GRCPyramidVisionTransformer',
        'embed_dims': dims[0],
        'num_stages': len(stages),
        'num_layers': [len(numbers) for numbers in blocks],
        # In every PVT, each head has as many channels as the first stage.
        'num_heads': [dim // dims[0] for dim in dims],
        'mlp_ratios': [state[f'{p}ffn.layers.0.weight'].shape[0] // dim for p, dim in zip(first, dims, strict=True)],
        'sr_ratios': [state[f'{p}attn.sr.weight'].shape[-1] if f'{p}attn.sr.weight' in state else 1 for p in first],
        'qkv_bias': f'{first[0]}attn.attn.in_proj_bias' in state,
        'out_indices': tuple(range(len(stages))),
    }
    if 'layers.0.2.weight' in state:
        config['type'] += 'V2'
    if (table := state.get('layers.0.1.0.pos_embed')) is not None:
        # The first stage has patches of 4 x 4 pixels.
        config['pretrain_img_size'] = 4 * math.isqrt(table.shape[1])
    if (cache := state.get(f'{first[0]}attn.grc.cache')) is not None:
        lengths = [state[f'{p}attn.grc.cache'].shape[1] for p in first]
        config['grc'] = {'cache_ratio': cache.shape[2] / dims[0], 'cache_sizes': [math.isqrt(n) for n in lengths]}
    return config


def convert_checkpoint(checkpoint: Mapping, model: nn.Module | None = None) -> tuple[dict[str, Tensor], LoadReport]:
    """Convert the checkpoint of a backbone, a classifier or a detector, and load it into a backbone as a check.

    Args:
        checkpoint: See :func:`checkpoint_state`.
        model: The backbone that it is for, which gives the sizes of position tables and caches. None: the checkpoint is
            a PVT of any known kind, and its tables and caches keep their sizes.

    Returns:
        The tensors that fit the backbone, under its keys, with their caches, and a report about the rest.

    Raises:
        ValueError: There is no ``model`` and it is not a PVT, or a tensor does not have the shape that its backbone
            needs.
    """
    if model is None:
        model = MODELS.build(pvt_config(convert_pvt(backbone_state(checkpoint))))
    state, report = match_converted(model, checkpoint, model.convert_state)
    model.load_state_dict({**model.state_dict(), **state})
    return state, report


def resize_caches(checkpoint: Mapping, old: nn.Module, new: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """Resample the caches of a checkpoint to the sizes in another config of the same model.

    A cell of the new grid is the mean of the old cells that it covers, weighted by the shared area. The summary of the
    tokens is computed in the same way (:class:`~mmgrc.models.resampling.Resampling`).

    Args:
        checkpoint: See :func:`checkpoint_state`.
        old: The model of the checkpoint.
        new: The same model, except for ``grc.cache_sizes``.

    Returns:
        The state dict for ``new``, and the keys of the caches that were resized.

    Raises:
        ValueError: The checkpoint does not fit ``old``, or ``new`` differs from ``old`` in more than the cache sizes.
    """
    state = checkpoint_state(checkpoint)
    _require_fit(state, old, 'the old config')
    old_sizes, new_sizes = _cache_sizes(old), _cache_sizes(new)
    resized = [key for key, size in new_sizes.items() if old_sizes.get(key, size) != size]
    for key in resized:
        state[key] = _resize_cache(state[key].unflatten(1, old_sizes[key]), new_sizes[key])
    _require_fit(state, new, 'the new config')
    return state, resized


def replace_caches(checkpoint: Mapping, source: Mapping | str, seed: int = 0) -> tuple[dict[str, Tensor], list[str]]:
    """Replace the caches of a trained checkpoint, to see what the detector owes to their content.

    Args:
        checkpoint: See :func:`checkpoint_state`.
        source: ``'zeros'``, ``'shuffled'`` for the cells of each cache in a random order, or another checkpoint of the
            same model, whose caches are taken.
        seed: Of the random order.

    Returns:
        The state dict, and the keys of the caches.

    Raises:
        ValueError: The checkpoint has no cache, or the other checkpoint lacks one of them in this shape.
    """
    state = checkpoint_state(checkpoint)
    keys = [key for key in state if key.endswith('.grc.cache')]
    if not keys:
        raise ValueError('the checkpoint has no cache')
    other = {} if isinstance(source, str) else checkpoint_state(source)
    generator = torch.Generator().manual_seed(seed)
    for key in keys:
        cache = state[key]
        if source == 'zeros':
            state[key] = torch.zeros_like(cache)
        elif source == 'shuffled':
            state[key] = cache[:, torch.randperm(cache.shape[1], generator=generator)]
        elif key in other and other[key].shape == cache.shape:
            state[key] = other[key].clone()
        else:
            found = tuple(other[key].shape) if key in other else 'nothing'
            raise ValueError(f'{key}: the checkpoint has {tuple(cache.shape)}, the other one has {found}')
    return state, keys


def _require_fit(state: Mapping[str, Tensor], model: nn.Module, config: str) -> None:
    own = model.state_dict()
    for key in {**own, **state}:
        shapes = [tuple(tensors[key].shape) if key in tensors else 'nothing' for tensors in (state, own)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f'{key}: the checkpoint has {shapes[0]}, the model of {config} has {shapes[1]}. The two configs may '
                'differ only in grc.cache_sizes, and the checkpoint must belong to the old one.'
            )
