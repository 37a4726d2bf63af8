"""What the GRC backbones share: their caches and the loading of weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from ..cache import CacheStep, commit, copy_caches
from ..convert import LoadReport, load_converted, match_converted, start_silently
from ..grc import GRC
from ..layers.positional import PositionalConvolution
from ..ops.folding import FoldedGRC
from ..ops.linear import replace_linear_layers
from ..options import GRCConfig

__all__ = ['CachedBackbone', 'make_layer']


class CachedBackbone(nn.Module):
    """Mixin for backbones whose attention layers have a :class:`GRC` layer.

    A backbone begins its forward with :meth:`begin_step`, runs its stages with :meth:`CacheStep.run`, and ends with
    :meth:`commit`. Only the commit changes state.
    """

    grc: GRCConfig
    init_cfg: Mapping | None
    convert_weights: bool
    _loaded_prefix: str = ''
    skipped_commits: int
    """Training steps since the start of the process that were not stored because a value was not finite."""

    def init_caches(self, grc: GRCConfig) -> None:
        """Set the options, replace linear layers by faster ones, and make loading warn about missing tensors.

        Call it once, after all layers are created.

        Raises:
            ValueError: ``init_cfg`` names no checkpoint.
        """
        init_cfg = self.init_cfg
        if init_cfg is not None and not (isinstance(init_cfg, Mapping) and init_cfg.get('checkpoint')):
            raise ValueError(
                f"init_cfg={init_cfg!r}: give dict(type='Pretrained', checkpoint=...), or None to train from scratch"
            )
        replace_linear_layers(self)
        self.grc = grc
        self.skipped_commits = 0
        if grc.stages:
            self.register_load_state_dict_post_hook(_warn_of_missing_layers)

    def grc_layers(self) -> dict[str, GRC]:
        """The GRC layers by name, in the order in which they run."""
        return {name: module for name, module in self.named_modules() if isinstance(module, GRC)}

    def added_layers(self) -> dict[str, GRC | PositionalConvolution]:
        """What ``grc`` adds to the stock backbone, by name: the GRC layers, or only their convolutions."""
        kinds = (GRC, PositionalConvolution)
        return {name: module for name, module in self.named_modules() if isinstance(module, kinds)}

    def reset_caches(self) -> None:
        """Empty every cache."""
        for layer in self.grc_layers().values():
            layer.cache.zero_()

    def init_weights(self) -> None:
        """Initialise from scratch, or from the checkpoint of ``init_cfg``, see :meth:`convert_state`.

        The caches start empty, unless ``grc.keep_caches`` takes those of the checkpoint. With ``grc.start='silent'``,
        new memories change nothing at first, see :func:`~mmgrc.models.convert.start_silently`.

        Raises:
            ValueError: No tensor of the checkpoint fits.
        """
        if self.init_cfg is None:
            super().init_weights()
            for layer in self.added_layers().values():
                layer.reset_parameters()
            if self.grc.start == 'silent':
                # The stock weights are the model's own here.
                state = {key: value for key, value in self.state_dict().items() if '.grc.' not in key}
                start_silently(self, state)
                self.load_state_dict({**self.state_dict(), **state})
        else:
            weights = CheckpointLoader.load_checkpoint(self.init_cfg['checkpoint'], map_location='cpu')
            convert = self.convert_state if self.convert_weights else None
            load_converted(self, weights, convert, with_caches=self.grc.keep_caches)

    def match_weights(self, checkpoint: Mapping) -> LoadReport:
        """Report what :meth:`init_weights` would load from a checkpoint, without loading it.

        Raises:
            ValueError: No tensor fits, or a tensor has another shape.
        """
        convert = self.convert_state if self.convert_weights else None
        return match_converted(self, checkpoint, convert, with_caches=self.grc.keep_caches)[1]

    def convert_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert the state dict of other code to the keys of this backbone."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        # This is the loader's own copy, from which the submodules are loaded next. Changes do not reach the caller.
        start_silently(self, state_dict, prefix)
        self._loaded_prefix = prefix
        super()._load_from_state_dict(state_dict, prefix, *args)

    def begin_step(self, images: Tensor) -> CacheStep:
        """Read the caches for a forward on ``images`` (B, C, H, W)."""
        return CacheStep(self.grc, images, copy_caches(self.grc_layers().values()) if self.training else {})

    def commit(self, step: CacheStep) -> None:
        """Write the new caches of a step. In evaluation there are none, and frozen caches are not written."""
        if not step.new_caches or self.grc.frozen:
            return
        skipped_for = commit(step.new_caches, self.grc.sync)
        if skipped_for is None:
            return
        self.skipped_commits += 1
        if self.skipped_commits == 1:
            name = next(name for name, layer in self.grc_layers().items() if layer is skipped_for)
            print_log(
                f'{name}: the new cache has values that are not finite. The step is not stored, and training continues '
                'with the old caches. This message appears once.',
                logger='current',
                level=logging.WARNING,
            )


def make_layer(
    options: GRCConfig, stage: int, embed_dims: int, num_heads: int, **layer
) -> FoldedGRC | PositionalConvolution | None:
    """Make what the options add to an attention layer.

    Args:
        options: The options of the memory.
        stage: The stage of the layer, from 0.
        embed_dims: Its channels, ``D``.
        num_heads: Its heads.
        layer: Other arguments of :class:`~mmgrc.models.grc.GRC` that are not options.

    Returns:
        None in a stage that stays as it is.
    """
    if stage not in options.stages:
        return None
    if not options.memory:
        return PositionalConvolution(embed_dims, num_heads, options.cache_ratio)
    return FoldedGRC(embed_dims, num_heads, **options.of_stage(stage), **layer)


def _warn_of_missing_layers(module: CachedBackbone, incompatible) -> None:
    # The keys of the whole model, which may have several backbones.
    prefix = module._loaded_prefix
    missing = [key for key in incompatible.missing_keys if key.startswith(prefix) and '.grc.' in key]
    unused = [key for key in incompatible.unexpected_keys if key.startswith(prefix) and '.grc.' in key]
    if not missing and not unused:
        return
    total = sum(len(layer.state_dict()) for layer in module.added_layers().values())
    caches = sum(key.endswith('.grc.cache') for key in missing)
    message = (
        f'{len(missing)} of the {total} GRC tensors of {type(module).__name__} are not in the checkpoint'
        f'{_first_of(missing)}, {caches} caches among them. They keep their current values, and a new cache '
        'is empty.'
    )
    if unused:
        message += f' {len(unused)} GRC tensors of the checkpoint are not in the model{_first_of(unused)}.'
    print_log(
        f'{message} This is harmless if training starts from weights without GRC. If a trained GRC model was meant, '
        'use the checkpoint with the config that it was trained with. Its work dir has a copy.',
        logger='current',
        level=logging.WARNING,
    )


def _first_of(keys: list[str]) -> str:
    return f' ({keys[0]}{", ..." if len(keys) > 1 else ""})' if keys else ''
