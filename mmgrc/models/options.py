"""The options of the memory, as users write them in a config, and their checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ['VARIANTS', 'GRCConfig', 'cache_channels', 'checked_choice', 'default_lambda']

VARIANTS = ('code', 'paper')
STARTS = ('random', 'silent')
# Stock weights are divided by 1 - σ(λ). Above this value, float32 soon has no significant digit of it left.
MAX_SILENT_LAMBDA = 10


@dataclass(frozen=True)
class GRCConfig:
    """The ``grc`` argument of a backbone, checked.

    Args:
        stages: Zero-based stages whose attention layers get a memory. ``()``: the stock backbone.
        cache_ratio: ``r`` of the paper, in (0, 1]: the ratio of the cache's channels to the layer's.
        cache_sizes: Rows and columns of the cache, one entry for each stage of the backbone.
        variant: ``'code'`` follows the authors' published module, ``'paper'`` the paper's equations.
        lambda_init: Initial value of the mixing logit λ. None: -1 for ``'code'``, 0 for ``'paper'``.
        pos_conv: Whether to add a 3x3 grouped convolution of the tokens on their grid.
        memory: Whether to attend to a cache. Without it only the convolution is added, and nothing else is computed.
        sync: Whether ranks average their caches at each training step.
        frozen: Whether the caches keep their values in training. Tokens still attend to the updated cache of their own
            image (``'code'``) or batch (``'paper'``), but nothing is stored from one step to the next.
        start: How a new memory and its convolution start. ``'random'``: with random weights, which change what the
            stock layer computes. ``'silent'``: they change nothing at first, see
            :func:`~mmgrc.models.convert.start_silently`.
        keep_caches: Whether the weights of ``init_cfg`` bring their caches, resized to ``cache_sizes``. Otherwise the
            caches start empty.
    """

    stages: tuple[int, ...] = (0, 1, 2, 3)
    cache_ratio: float = 0.5
    cache_sizes: tuple[tuple[int, int], ...] | None = None
    variant: str = 'code'
    lambda_init: float | None = None
    pos_conv: bool = True
    memory: bool = True
    sync: bool = True
    frozen: bool = False
    start: str = 'random'
    keep_caches: bool = False

    @classmethod
    def parse(
        cls, options: Mapping | None, num_stages: int, default_cache_sizes: Sequence[int | tuple[int, int]]
    ) -> GRCConfig:
        """Check the user's options and fill in the defaults.

        Args:
            options: The ``grc`` dictionary of a config. None means an empty one.
            num_stages: Number of stages of the backbone.
            default_cache_sizes: Cache grids of the stages, used if ``options`` has none.

        Returns:
            The options, with ``cache_sizes`` and ``lambda_init`` set.

        Raises:
            ValueError: An option is unknown or has an invalid value. The message names it and says what is allowed.
        """
        if not isinstance(options, Mapping | None):
            raise ValueError(
                f'grc={options!r}: give a dictionary of options, or None. Without a memory: grc=dict(stages=())'
            )
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        options = {**defaults, 'stages': tuple(range(num_stages)), **(options or {})}
        if unknown := sorted(options.keys() - defaults.keys()):
            raise ValueError(f'grc has no option {unknown[0]!r}; allowed: {", ".join(defaults)}')

        stages = options['stages']
        if not _is_sequence(stages) or any(not _is_int(s) or not 0 <= s < num_stages for s in stages):
            raise ValueError(f'grc.stages={stages!r}: give a sequence of stages from 0 to {num_stages - 1}, or ()')
        if len(set(stages)) != len(stages):
            raise ValueError(f'grc.stages={stages!r}: a stage is given twice')

        ratio = options['cache_ratio']
        if not _is_number(ratio) or not 0 < ratio <= 1:
            raise ValueError(f'grc.cache_ratio={ratio!r}: give a number above 0 and at most 1')

        sizes = default_cache_sizes if options['cache_sizes'] is None else options['cache_sizes']
        if not _is_sequence(sizes) or len(sizes) != num_stages:
            raise ValueError(
                f'grc.cache_sizes={sizes!r}: give {num_stages} entries, one for each stage of the backbone, each a '
                'number of rows and columns, or a pair (rows, columns)'
            )
        pairs: tuple = tuple(
            tuple(size) if isinstance(size, Sequence) else (size, size) if _is_int(size) else () for size in sizes
        )
        if any(len(pair) != 2 or not all(_is_int(n) and n > 0 for n in pair) for pair in pairs):
            raise ValueError(
                f'grc.cache_sizes={sizes!r}: each entry must be a whole number above 0, or a pair of such numbers'
            )

        variant = checked_choice('variant', options['variant'], VARIANTS)
        start = checked_choice('start', options['start'], STARTS)

        lambda_init = default_lambda(variant) if options['lambda_init'] is None else options['lambda_init']
        if not _is_number(lambda_init) or not -100 <= lambda_init <= 100:
            raise ValueError(f'grc.lambda_init={lambda_init!r}: give a number from -100 to 100, or None')
        if start == 'silent' and lambda_init > MAX_SILENT_LAMBDA:
            raise ValueError(
                f"grc.lambda_init={lambda_init!r}: with grc.start='silent' give a number up to {MAX_SILENT_LAMBDA}, or "
                'None; above it the mix leaves too little of self-attention'
            )

        for name in ('pos_conv', 'memory', 'sync', 'frozen', 'keep_caches'):
            if not isinstance(options[name], bool):
                raise ValueError(f'grc.{name}={options[name]!r}: give True or False')
        if not options['memory'] and not options['pos_conv']:
            raise ValueError(
                'grc.memory=False with grc.pos_conv=False: nothing is left. For the stock backbone give grc.stages=()'
            )

        options.update(
            stages=tuple(sorted(stages)),
            cache_ratio=float(ratio),
            cache_sizes=pairs,
            lambda_init=float(lambda_init),
        )
        return cls(**options)

    @property
    def cached_stages(self) -> tuple[int, ...]:
        """Zero-based stages with caches."""
        return self.stages if self.memory else ()

    def cache_size(self, stage: int) -> tuple[int, int]:
        """Rows and columns of the cache in a stage."""
        if self.cache_sizes is None:
            raise ValueError('grc.cache_sizes is not set: use GRCConfig.parse, which knows the defaults')
        return self.cache_sizes[stage]

    def of_stage(self, stage: int) -> dict:
        """The arguments of a :class:`~mmgrc.models.grc.GRC` layer that are options of a stage."""
        return {
            'cache_size': self.cache_size(stage),
            'cache_ratio': self.cache_ratio,
            'variant': self.variant,
            'lambda_init': self.lambda_init,
            'pos_conv': self.pos_conv,
        }


def checked_choice(name: str, value: str, allowed: Sequence[str]) -> str:
    """Return ``value``, the value of the option ``name``.

    Raises:
        ValueError: The value is not allowed.
    """
    if value not in allowed:
        raise ValueError(f'grc.{name}={value!r}: allowed are {" and ".join(map(repr, allowed))}')
    return value


def default_lambda(variant: str) -> float:
    """The initial value of λ in the published code or in the paper."""
    return -1.0 if variant == 'code' else 0.0


def cache_channels(embed_dims: int, num_heads: int, cache_ratio: float, pos_conv: bool) -> int:
    """``D_m = r D``, the channels of a layer's cache.

    Raises:
        ValueError: The channels do not divide evenly among the heads, or ``D`` is not a multiple of them as the
            positional convolution needs. The message lists the ratios that work.
    """
    dims = round(embed_dims * cache_ratio)
    if dims < 1 or dims % num_heads or (pos_conv and embed_dims % dims):
        allowed = [
            n / embed_dims for n in range(num_heads, embed_dims + 1, num_heads) if not pos_conv or embed_dims % n == 0
        ]
        raise ValueError(
            f'grc.cache_ratio={cache_ratio:g} does not split the {embed_dims} channels of a layer with {num_heads} '
            f'heads evenly; allowed: {", ".join(f"{ratio:g}" for ratio in allowed)}'
        )
    return dims


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_sequence(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
