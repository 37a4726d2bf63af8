"""GRC attention of "Cached Transformers" (arXiv 2312.12742): gates, cache, memory attention and mix.

Nothing here knows of PVT or Swin, and nothing here writes state: a branch reads its cache as a constant and returns the
cache that it proposes. :mod:`mmgrc.models.cache` commits the proposals of a whole backbone at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .chunks import in_chunks
from .convolution import convolve_tokens
from .fused_attention import attend
from .linear import linear
from .patches import convolve_patches

__all__ = ['GRC', 'GRCConfig', 'MemoryAttention', 'Resampling', 'make_resampling', 'valid_extent']

VARIANTS = ('code', 'paper')
STARTS = ('random', 'silent')
# Stock weights are divided by 1 - σ(λ), of which float32 soon has no digit left above this.
MAX_SILENT_LAMBDA = 10


@dataclass(frozen=True)
class GRCConfig:
    """The ``grc`` argument of a backbone, checked.

    Args:
        stages: Zero-based stages whose attentions get a memory. None of them: the stock backbone.
        cache_ratio: ``r`` of the paper, in (0, 1]: the share of the channels that the cache holds.
        cache_sizes: Rows and columns of the cache, an entry for each stage of the backbone.
        variant: ``'code'``, as the authors' published module computes; ``'paper'``, as the paper's equations say.
        lambda_init: First value of the mixing logit λ. None: -1 for ``'code'``, 0 for ``'paper'``.
        pos_conv: Whether to add a 3x3 grouped convolution of the tokens on their grid.
        sync: Whether ranks average their caches at each training step.
        start: What a branch does where stock weights are loaded beside it. ``'random'``: nothing, it keeps its random
            weights, which change what the stock layer computes. ``'silent'``: it changes nothing at first, see
            :func:`~mmgrc.models.convert.start_silently`. Training from scratch is the same with both.
    """

    stages: tuple[int, ...] = (0, 1, 2, 3)
    cache_ratio: float = 0.5
    cache_sizes: tuple[tuple[int, int], ...] | None = None
    variant: str = 'code'
    lambda_init: float | None = None
    pos_conv: bool = True
    sync: bool = True
    start: str = 'random'

    @classmethod
    def parse(
        cls, options: Mapping | None, num_stages: int, default_cache_sizes: Sequence[int | tuple[int, int]]
    ) -> GRCConfig:
        """Check the user's options and fill in the defaults.

        Args:
            options: The ``grc`` dictionary of a config; None stands for an empty one.
            num_stages: How many stages the backbone has.
            default_cache_sizes: Cache grids of the stages, where ``options`` has none.

        Returns:
            The options, with ``cache_sizes`` and ``lambda_init`` set.

        Raises:
            ValueError: An option is unknown or has a bad value. The message names it and says what is allowed.
        """
        options = dict(options or {})
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(options) - set(known)):
            raise ValueError(f'grc has no option {unknown[0]!r}; allowed: {", ".join(known)}')

        stages = options.get('stages', tuple(range(num_stages)))
        if not _is_sequence(stages) or any(not _is_int(s) or not 0 <= s < num_stages for s in stages):
            raise ValueError(f'grc.stages={stages!r}: give a sequence of stages from 0 to {num_stages - 1}, or ()')
        if len(set(stages)) != len(stages):
            raise ValueError(f'grc.stages={stages!r}: a stage stands there twice')

        ratio = options.get('cache_ratio', cls.cache_ratio)
        if not _is_number(ratio) or not 0 < ratio <= 1:
            raise ValueError(f'grc.cache_ratio={ratio!r}: give a number above 0 and at most 1')

        sizes = options.get('cache_sizes')
        sizes = default_cache_sizes if sizes is None else sizes
        if not _is_sequence(sizes) or len(sizes) != num_stages:
            raise ValueError(
                f'grc.cache_sizes={sizes!r}: give {num_stages} entries, one for each stage of the backbone, each a '
                'number of rows and columns, or a pair (rows, columns)'
            )
        pairs = tuple((size, size) if _is_int(size) else tuple(size) if _is_sequence(size) else () for size in sizes)
        if any(len(pair) != 2 or not all(_is_int(n) and n > 0 for n in pair) for pair in pairs):
            raise ValueError(
                f'grc.cache_sizes={sizes!r}: each entry must be a whole number above 0, or a pair of such numbers'
            )

        variant = options.get('variant', cls.variant)
        start = options.get('start', cls.start)
        for name, value, allowed in (('variant', variant, VARIANTS), ('start', start, STARTS)):
            if value not in allowed:
                raise ValueError(f'grc.{name}={value!r}: allowed are {" and ".join(map(repr, allowed))}')

        lambda_init = options.get('lambda_init')
        if lambda_init is None:
            lambda_init = -1.0 if variant == 'code' else 0.0
        if not _is_number(lambda_init) or not -100 <= lambda_init <= 100:
            raise ValueError(f'grc.lambda_init={lambda_init!r}: give a number from -100 to 100, or None')
        if start == 'silent' and lambda_init > MAX_SILENT_LAMBDA:
            raise ValueError(
                f"grc.lambda_init={lambda_init!r}: with grc.start='silent' give a number up to {MAX_SILENT_LAMBDA}, or "
                'None; above it the mix leaves too little of self-attention'
            )

        for name in ('pos_conv', 'sync'):
            if not isinstance(options.get(name, True), bool):
                raise ValueError(f'grc.{name}={options[name]!r}: give True or False')

        return cls(
            stages=tuple(sorted(stages)),
            cache_ratio=float(ratio),
            cache_sizes=pairs,
            variant=variant,
            lambda_init=float(lambda_init),
            pos_conv=options.get('pos_conv', cls.pos_conv),
            sync=options.get('sync', cls.sync),
            start=start,
        )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_sequence(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


class Resampling(NamedTuple):
    """Weights that bring a token grid (H, W) to the cache's grid (H_m, W_m), for each image of a batch.

    A cell of the cache is the mean of the tokens below it, each by the area that they share. On a grid of the cache's
    own size this is the identity, to the bit.
    """

    rows: Tensor
    """(B, H_m, H)"""
    cols: Tensor
    """(B, W_m, W)"""

    def __call__(self, grid: Tensor) -> Tensor:
        """Resample ``grid`` (B, H, W, C) to (B, H_m * W_m, C)."""
        batch, height, width, channels = grid.shape
        rows = self.rows.to(grid.dtype) @ grid.reshape(batch, height, width * channels)
        cells = self.cols.to(grid.dtype)[:, None] @ rows.unflatten(2, (width, channels))
        return cells.flatten(1, 2)


def valid_extent(images: Tensor) -> Tensor:
    """Find how much of each image of a batch is not padding.

    MMDetection pads normalised images with zeros at the bottom and at the right, so the trailing rows and columns that
    are zero throughout are taken as padding. An image of zeros only counts as valid throughout.

    Args:
        images: (B, C, H, W).

    Returns:
        (B, 2), the valid rows and columns in pixels, float32.
    """
    filled = (images != 0).any(dim=1)
    extents = []
    for lines in (filled.any(dim=2), filled.any(dim=1)):
        total = lines.shape[1]
        ends = torch.arange(1, total + 1, device=images.device, dtype=torch.float32)
        last = (lines * ends).amax(dim=1)
        extents.append(torch.where(last > 0, last, last.new_full((), total)))
    return torch.stack(extents, dim=1)


def make_resampling(
    extent: Tensor, image_size: tuple[int, int], grid: tuple[int, int], cache_size: tuple[int, int]
) -> Resampling:
    """Weights that resample the valid part of a token grid to the cache's grid.

    Args:
        extent: (B, 2), valid rows and columns of each image, in pixels.
        image_size: Rows and columns of the padded batch, in pixels.
        grid: Rows and columns of its tokens.
        cache_size: Rows and columns of the cache.
    """
    weights = []
    for axis in range(2):
        tokens, cells = grid[axis], cache_size[axis]
        # The valid part in tokens; multiplied first, so that whole numbers stay whole.
        valid = (extent[:, axis] * tokens / image_size[axis])[:, None, None]
        cell = torch.arange(cells, device=extent.device, dtype=extent.dtype)[None, :, None]
        token = torch.arange(tokens, device=extent.device, dtype=extent.dtype)[None, None, :]
        upper = torch.minimum((cell + 1) * valid / cells, token + 1)
        lower = torch.maximum(cell * valid / cells, token)
        weights.append((upper - lower).clamp(min=0) * cells / valid)
    return Resampling(*weights)


class Projection(NamedTuple):
    """Weight (D_out, D_in) and bias (D_out,) of a linear layer, with what is folded into them."""

    weight: Tensor
    bias: Tensor


def _projection(layer: nn.Linear | None, tokens: Tensor) -> Projection:
    """That of ``layer``; without one, the identity on ``tokens`` (..., D)."""
    weight = tokens.new_ones(tokens.shape[-1]).diag() if layer is None else layer.weight
    bias = None if layer is None else layer.bias
    return Projection(weight, weight.new_zeros(len(weight)) if bias is None else bias)


class MemoryAttention(nn.Module):
    """Multi-head attention of the tokens over a cache (paper, Eq. 4, the memory's part).

    As PVT's spatial-reduction attention, with the cache's grid in the place of the tokens': with ``sr_ratio`` above 1 a
    strided convolution and a norm shorten the cache before it is attended.

    Args:
        dims: Channels of the cache, ``D_m``.
        num_heads: Heads.
        cache_size: Rows and columns of the cache.
        sr_ratio: Reduction of the cache's rows and of its columns.
        qkv_bias: Whether queries, keys and values have a bias.
        attn_drop: Dropout of the attention, in [0, 1].
        proj_drop: Dropout of what was read, in [0, 1].

    Raises:
        ValueError: The cache is smaller than the reduction.
    """

    def __init__(
        self,
        dims: int,
        num_heads: int,
        cache_size: tuple[int, int],
        sr_ratio: int = 1,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if min(cache_size) < sr_ratio:
            raise ValueError(
                f'grc.cache_sizes: a cache of {cache_size[0]} x {cache_size[1]} is smaller than the reduction of its '
                f'stage; give at least {sr_ratio} x {sr_ratio} there'
            )
        self.num_heads = num_heads
        self.cache_size = cache_size
        self.attn_drop = attn_drop
        self.proj_drop = proj_drop
        self.q = nn.Linear(dims, dims, bias=qkv_bias)
        self.kv = nn.Linear(dims, 2 * dims, bias=qkv_bias)
        self.proj = nn.Linear(dims, dims)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(dims, dims, kernel_size=sr_ratio, stride=sr_ratio)
            self.norm = nn.LayerNorm(dims)
        else:
            self.sr = None

    def forward(self, x: Tensor, read: Tensor, memory: Tensor, project: Projection, project_self: Projection) -> Tensor:
        """Attend the memory and project what was read of it, and what self-attention read, into one sum.

        Args:
            x: (B, T, D), of whose first ``D_m`` channels the queries are made.
            read: (B, T, D), what self-attention read.
            memory: (B, T_m, D_m), or (1, T_m, D_m) where all images read the same.
            project: Of the memory's part, (D, D_m) and (D,); :meth:`GRC.forward` folds the mix into it.
            project_self: Of self-attention's part, (D, D) and (D,), with the mix as well.

        Returns:
            (B, T, D).
        """
        key, value = self._keys_and_values(memory)
        if key.shape[0] != x.shape[0]:
            key, value = (part.expand(x.shape[0], -1, -1, -1) for part in (key, value))

        def mix(x: Tensor, read: Tensor, key: Tensor, value: Tensor) -> Tensor:
            query, dropout = self._queries(x), self.attn_drop if self.training else 0.0
            o_mem = attend(query, key, value, dropout).transpose(1, 2).flatten(2)
            o_mem = F.dropout(linear(o_mem, *project), self.proj_drop, self.training)
            return o_mem.add_(linear(read, *project_self))

        return in_chunks(mix, [x, read], [key, value], width=x.shape[2], recompute=False)

    def attention(self, x: Tensor, memory: Tensor) -> Tensor:
        """The attention itself, which :meth:`forward` never holds in memory; for pictures.

        Args:
            x: (B, T, D), see :meth:`forward`.
            memory: (B, T_m, D_m) or (1, T_m, D_m), see :meth:`forward`.

        Returns:
            (B, heads, T, K), over the K cells of the reduced cache; a row sums to 1.
        """
        query = self._queries(x)
        key, _ = self._keys_and_values(memory)
        return (query @ key.transpose(2, 3) / query.shape[3] ** 0.5).softmax(dim=3)

    def _queries(self, x: Tensor) -> Tensor:
        """(B, heads, T, D_m / heads), of the first channels of the tokens."""
        return self.q(x[..., : self.q.in_features]).unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def _keys_and_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """(B, heads, K, D_m / heads) each, of the reduced memory."""
        memory = memory.to(self.kv.weight.dtype)
        if self.sr is not None:
            # (B, T_m, D_m) seen as an NHWC map; the convolution gives 1/sr_ratio of the rows and columns.
            memory, _ = convolve_patches(memory.unflatten(1, self.cache_size).permute(0, 3, 1, 2), self.sr)
            memory = self.norm(memory)
        # (B, K, 2 D_m) -> 2 x (B, heads, K, D_m / heads)
        key, value = self.kv(memory).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return key, value


def _no_autocast(device: torch.device) -> AbstractContextManager:
    # There is no autocast to leave on the meta device.
    return nullcontext() if device.type == 'meta' else torch.autocast(device.type, enabled=False)


class GRC(nn.Module):
    """The branch that gives one attention layer a memory (paper, Eq. 3 to 5).

    The cache is a buffer of fixed size, in float32 whatever the precision of the rest, zeros at the start.

    Args:
        embed_dims: Channels of the layer, ``D``.
        num_heads: Heads of the layer, and of the memory attention.
        cache_size: Rows and columns of the cache.
        cache_ratio: ``D_m / D``, in (0, 1].
        variant: ``'code'`` or ``'paper'``, see :class:`GRCConfig`.
        lambda_init: First value of the mixing logit of every head.
        pos_conv: Whether to add the positional convolution.
        sr_ratio: Reduction of the cache in the memory attention.
        qkv_bias: Whether the memory attention's queries, keys and values have a bias.
        attn_drop: Dropout of the memory attention, in [0, 1].
        proj_drop: Dropout of the memory attention's output, in [0, 1].

    Raises:
        ValueError: ``cache_ratio`` does not split the channels evenly, or the cache is smaller than ``sr_ratio``.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        cache_size: tuple[int, int],
        cache_ratio: float = 0.5,
        variant: str = 'code',
        lambda_init: float = -1.0,
        pos_conv: bool = True,
        sr_ratio: int = 1,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        dims = round(embed_dims * cache_ratio)
        # The grouped convolution needs whole groups, the mix whole channels of each head.
        if dims < 1 or dims % num_heads or (pos_conv and embed_dims % dims):
            allowed = [
                n / embed_dims
                for n in range(num_heads, embed_dims + 1, num_heads)
                if not pos_conv or embed_dims % n == 0
            ]
            raise ValueError(
                f'grc.cache_ratio={cache_ratio:g} does not split the {embed_dims} channels of a layer with {num_heads} '
                f'heads evenly; allowed: {", ".join(f"{ratio:g}" for ratio in allowed)}'
            )
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        self.dims = dims
        self.cache_size = tuple(cache_size)
        self.variant = variant
        self.lambda_init = lambda_init

        self.update_gate = nn.Linear(2 * dims, dims)
        self.reset_gate = nn.Linear(2 * dims, dims)
        self.candidate = nn.Linear(2 * dims, dims)
        self.candidate_norm = nn.LayerNorm(dims) if variant == 'code' else None
        self.mem_attn = MemoryAttention(dims, num_heads, self.cache_size, sr_ratio, qkv_bias, attn_drop, proj_drop)
        self.lam = nn.Parameter(torch.empty(num_heads))
        self.pos_conv = nn.Conv2d(embed_dims, embed_dims, 3, padding=1, groups=dims) if pos_conv else None
        self.register_buffer('cache', torch.zeros(1, self.cache_size[0] * self.cache_size[1], dims))
        self.cache: Tensor
        self.reset_parameters()

    @classmethod
    def for_stage(cls, options: GRCConfig, stage: int, **layer) -> GRC:
        """The branch that the user's options ask for in a stage; ``layer`` holds what the attention layer decides."""
        return cls(
            cache_size=options.cache_sizes[stage],
            cache_ratio=options.cache_ratio,
            variant=options.variant,
            lambda_init=options.lambda_init,
            pos_conv=options.pos_conv,
            **layer,
        )

    def reset_parameters(self) -> None:
        """Initialise the weights as PVT does its own, λ with ``lambda_init``, and empty the cache."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
            elif isinstance(module, nn.Conv2d):
                module.reset_parameters()
            if isinstance(module, nn.Linear | nn.LayerNorm | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.constant_(self.lam, self.lambda_init)
        self.cache.zero_()

    @torch.no_grad()
    def silence(self) -> Tensor:
        """Make the branch add nothing to the mix: the last layer of each of its two parts becomes zero.

        Returns:
            (D,), the share 1 - σ(λ) that the mix still leaves of each channel of ``O_self``.
        """
        for layer in (self.mem_attn.proj, self.pos_conv):
            if layer is not None:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
        return (1 - self.lam.sigmoid()).repeat_interleave(self.embed_dims // self.num_heads)

    def extra_repr(self) -> str:
        return f'variant={self.variant!r}, cache={self.cache_size[0]}x{self.cache_size[1]}x{self.dims}'

    def forward(
        self,
        x: Tensor,
        read: Tensor,
        proj: nn.Linear | None,
        hw_shape: tuple[int, int],
        cache: Tensor,
        resampling: Resampling,
    ) -> tuple[Tensor, Tensor | None]:
        """Mix what self-attention gives with what the memory gives.

        Args:
            x: (B, T, D), the layer's normed tokens.
            read: (B, T, D), what self-attention read of its values, its heads side by side.
            proj: The output projection of self-attention, D to D, which makes ``O_self`` of it. None: that was done.
            hw_shape: Rows H and columns W of the tokens, T = H W.
            cache: (1, T_m, D_m), the cache as it was before this step.
            resampling: From (H, W) to the cache's grid.

        Returns:
            The mix (B, T, D), and the cache (1, T_m, D_m) that this step proposes, detached: None in evaluation.
        """
        project_self = _projection(proj, read)
        updates, memory = self.variant == 'code' or self.training, cache
        if updates:
            memory = self._update(*self._summarise(x, read, project_self, hw_shape, cache, resampling))
        proposal = memory.detach().mean(dim=0, keepdim=True) if self.training else None
        if updates and self.variant == 'paper':
            memory = memory.mean(dim=0, keepdim=True)

        # σ(λ) scales the memory's output per head and zeros pad its channels to D / heads; 1 - σ(λ) scales O_self. All
        # of it is linear, so it goes into the two output projections: no padded or scaled copy of an output is made.
        alpha = self.lam.sigmoid()
        project = self.mem_attn.proj
        rows = (self.num_heads, self.dims // self.num_heads)
        padding = (self.embed_dims - self.dims) // self.num_heads
        weight = F.pad(alpha[:, None, None] * project.weight.unflatten(0, rows), (0, 0, 0, padding)).flatten(0, 1)
        bias = F.pad(alpha[:, None] * project.bias.unflatten(0, rows), (0, padding)).flatten()
        keep = (1 - alpha).repeat_interleave(self.embed_dims // self.num_heads)
        kept = Projection(keep[:, None] * project_self.weight, keep * project_self.bias)
        out = self.mem_attn(x, read, memory, Projection(weight, bias), kept)
        if self.pos_conv is not None:
            out = out + convolve_tokens(x, hw_shape, self.pos_conv)
        return out, proposal

    @torch.no_grad()
    def gates(
        self,
        x: Tensor,
        read: Tensor,
        proj: nn.Linear | None,
        hw_shape: tuple[int, int],
        cache: Tensor,
        resampling: Resampling,
    ) -> tuple[Tensor, Tensor]:
        """The gates that :meth:`forward` has for the same arguments, without gradients; for logs.

        Returns:
            The update gate z and the reset gate g, (B, T_m, D_m) each, in (0, 1).
        """
        with _no_autocast(x.device):
            return self._gates(*self._summarise(x, read, _projection(proj, read), hw_shape, cache, resampling))

    def _summarise(
        self,
        x: Tensor,
        read: Tensor,
        project_self: Projection,
        hw_shape: tuple[int, int],
        cache: Tensor,
        resampling: Resampling,
    ) -> tuple[Tensor, Tensor]:
        """The cache, repeated for each image, and the summary X̄, (B, T_m, D_m) each, in the cache's precision."""
        tokens = read if self.variant == 'code' else x
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        with _no_autocast(x.device):
            # All channels are resampled: a slice of the tokens would be copied, and its gradient filled up with zeros.
            summary = resampling(tokens.to(dtype).unflatten(1, hw_shape))
            if self.variant == 'code':
                # The summary is of O_self: the mean of projections is the projection of the mean, on far fewer tokens.
                summary = F.linear(summary, *(part[: self.dims].to(dtype) for part in project_self))
        summary = summary[..., : self.dims]
        return cache.to(dtype).expand_as(summary), summary

    def _gates(self, cache: Tensor, summary: Tensor) -> tuple[Tensor, Tensor]:
        gate_input, dtype = torch.cat([cache, summary], dim=2), summary.dtype
        update, reset = (
            torch.sigmoid(F.linear(gate_input, gate.weight.to(dtype), gate.bias.to(dtype)))
            for gate in (self.update_gate, self.reset_gate)
        )
        return update, reset

    def _update(self, cache: Tensor, summary: Tensor) -> Tensor:
        """The updated cache C' of each image, (B, T_m, D_m), in the cache's precision (paper, Eq. 3)."""
        with _no_autocast(summary.device):
            update, reset = self._gates(cache, summary)
            dtype = summary.dtype
            parts = [reset * cache, summary]
            candidate = torch.cat(parts if self.variant == 'code' else parts[::-1], dim=2)
            candidate = F.linear(candidate, self.candidate.weight.to(dtype), self.candidate.bias.to(dtype))
            if self.candidate_norm is not None:
                norm = self.candidate_norm
                candidate = F.layer_norm(
                    F.gelu(candidate), norm.normalized_shape, norm.weight.to(dtype), norm.bias.to(dtype), norm.eps
                )
            return update * candidate + (1 - update) * cache

    def _apply(self, fn, recurse: bool = True) -> GRC:
        """Keep the cache in float32 when the rest of the model moves to half precision."""
        exact = self.cache
        super()._apply(fn, recurse)
        if self.cache.dtype in (torch.float16, torch.bfloat16):
            self.cache = exact.to(self.cache.device)
        return self

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """Refuse a cache of another size, which lenient loaders only warn of.

        Raises:
            ValueError: The checkpoint's cache has another shape.
        """
        stored = state_dict.get(f'{prefix}cache')
        if stored is not None and stored.shape != self.cache.shape:
            raise ValueError(
                f"{prefix}cache: the checkpoint's cache has the shape {tuple(stored.shape)}, the model's has "
                f'{tuple(self.cache.shape)} ({self.cache_size[0]} x {self.cache_size[1]} tokens of {self.dims} '
                'channels). Set grc.cache_sizes and grc.cache_ratio to what the checkpoint was trained with, or, where '
                'grc.cache_sizes was changed on purpose, write a resized checkpoint with '
                'tools/convert_checkpoint.py --resize-caches.'
            )
        super()._load_from_state_dict(state_dict, prefix, *args)
