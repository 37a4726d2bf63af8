"""The state of a GRC backbone: which caches there are, who reads them, and the one place where they change."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

import torch
import torch.distributed as dist
from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .convert import LoadReport, load_converted, match_converted, start_silently
from .grc import GRC, GRCConfig, Resampling, make_resampling, valid_extent
from .linear import replace_linear_layers

__all__ = ['CacheStep', 'CachedBackbone', 'CachedBlock']


class CachedBlock(nn.Module):
    """Base of the transformer blocks: a pure function of its arguments and weights, so that it can be run twice.

    Args:
        with_cp: Whether to keep only the inputs of the two halves for the backward pass, and compute the rest anew.
    """

    attn: nn.Module
    """The attention, whose ``grc`` is the memory, or None."""

    def __init__(self, with_cp: bool = False) -> None:
        super().__init__()
        self.with_cp = with_cp

    def forward(
        self,
        x: Tensor,
        hw_shape: tuple[int, int],
        cache: Tensor | None = None,
        resampling: Resampling | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the block.

        Args:
            x: (B, T, D), tokens.
            hw_shape: Rows and columns of the tokens.
            cache: (1, T_m, D_m), the cache as it was before this step; None without a memory.
            resampling: From the tokens' grid to the cache's; None without a memory.

        Returns:
            (B, T, D), and the cache (1, T_m, D_m) that this step proposes, if any.
        """
        x, proposal = self._run(self._attend, x, hw_shape, cache, resampling)
        return self._run(self._feed_forward, x, hw_shape), proposal

    def _run(self, half: Callable, *args):
        # Each half by itself: in the backward pass only one of them is in memory at a time.
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(half, *args, use_reentrant=False)
        return half(*args)

    def _attend(
        self, x: Tensor, hw_shape: tuple[int, int], cache: Tensor | None, resampling: Resampling | None
    ) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError

    def _feed_forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        raise NotImplementedError


class CacheStep:
    """One forward of a backbone: its blocks read their caches, and what they propose is kept for the end.

    Args:
        options: The options of the memory.
        images: (B, C, H, W), its input.
        caches: Copies of the caches, made before a compiled graph begins. Those that are not there are copied here:
            graphs hold copies throughout, since a commit may come before the backward pass.
    """

    def __init__(self, options: GRCConfig, images: Tensor, caches: Mapping[GRC, Tensor]) -> None:
        self.options = options
        self.caches = caches
        self.image_size = tuple(images.shape[2:])
        self.extent = valid_extent(images) if options.stages else None
        self.proposals: list[tuple[GRC, Tensor]] = []

    def run(self, stage: int, blocks: Iterable[nn.Module], x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """Run the blocks of a stage.

        Args:
            stage: Its number, from 0.
            blocks: Its blocks, and stock layers that stand between them.
            x: (B, T, D), tokens.
            hw_shape: Rows and columns of the tokens.

        Returns:
            (B, T, D).
        """
        resampling = None
        if stage in self.options.stages:
            resampling = make_resampling(self.extent, self.image_size, hw_shape, self.options.cache_sizes[stage])
        for block in blocks:
            if not isinstance(block, CachedBlock):
                x = block(x, hw_shape)
                continue
            branch = block.attn.grc
            cache = self.caches.get(branch)
            if cache is None and branch is not None:
                cache = branch.cache.clone()
            x, proposal = block(x, hw_shape, cache, resampling)
            if proposal is not None:
                self.proposals.append((branch, proposal))
        if x.requires_grad and not torch.compiler.is_compiling():
            # What follows sees a map, and gives a gradient whose channels are apart. All blocks would go on with it.
            x.register_hook(Tensor.contiguous)
        return x


class CachedBackbone(nn.Module):
    """Mixin for backbones whose attention layers have a :class:`GRC` branch.

    A backbone begins its forward with :meth:`begin_step`, runs its stages with :meth:`CacheStep.run`, and ends with
    :meth:`commit`. In between nothing changes.
    """

    grc: GRCConfig
    init_cfg: Mapping | None
    convert_weights: bool
    skipped_commits: int
    """Training steps since the start of the process that were not stored, for a value that is not finite."""

    def init_caches(self, grc: GRCConfig) -> None:
        """Take the options, speed up the layers and make loading loud; called once, when all branches are in place."""
        replace_linear_layers(self)
        self.grc = grc
        self.skipped_commits = 0
        self._nonfinite_logged = False
        if grc.stages:
            self.register_load_state_dict_post_hook(_warn_of_missing_branches)

    def grc_layers(self) -> dict[str, GRC]:
        """The branches by their names in the backbone, in the order in which they run."""
        return {name: module for name, module in self.named_modules() if isinstance(module, GRC)}

    def reset_caches(self) -> None:
        """Empty every cache."""
        for branch in self.grc_layers().values():
            branch.cache.zero_()

    def init_weights(self) -> None:
        """Initialise from scratch, or from the checkpoint that ``init_cfg`` names, see :meth:`convert_state`.

        The caches start empty either way.

        Raises:
            ValueError: No tensor of the checkpoint fits.
        """
        if self.init_cfg is None:
            super().init_weights()
            for branch in self.grc_layers().values():
                branch.reset_parameters()
        else:
            weights = CheckpointLoader.load_checkpoint(self.init_cfg['checkpoint'], map_location='cpu')
            load_converted(self, weights, self.convert_state if self.convert_weights else None, with_caches=False)

    def match_weights(self, checkpoint: Mapping) -> LoadReport:
        """What :meth:`init_weights` would take of a checkpoint; nothing is loaded.

        Raises:
            ValueError: No tensor of it fits, or one has another shape.
        """
        convert = self.convert_state if self.convert_weights else None
        return match_converted(self, checkpoint, convert, with_caches=False)[1]

    def convert_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Bring the state dict of other code to the keys and shapes of this backbone."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        # The loader's own copy, of which the layers below are loaded next: a change here never reaches the caller.
        start_silently(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def begin_step(self, images: Tensor) -> CacheStep:
        """Read the caches for a forward on ``images`` (B, C, H, W)."""
        return CacheStep(self.grc, images, self._copy_caches() if self.training else {})

    def commit(self, step: CacheStep) -> None:
        """Write what the step proposes: in training mode only, since blocks propose nothing in evaluation."""
        if step.proposals:
            self._commit(step.proposals)

    # Not compiled: a compiled graph would hold the cache itself for the backward pass, and not the copy.
    @torch.compiler.disable
    def _copy_caches(self) -> dict[GRC, Tensor]:
        return {branch: branch.cache.clone() for branch in self.grc_layers().values()}

    @torch.compiler.disable
    @torch.no_grad()
    def _commit(self, proposals: list[tuple[GRC, Tensor]]) -> None:
        """Write proposals, each (1, T_m, D_m), on all ranks alike.

        One check and one collective serve all layers. A step with a value that is not finite, on any rank, is not
        written at all.
        """
        branches, caches = zip(*proposals, strict=True)
        flat = torch.cat([cache.flatten() for cache in caches])
        if self.grc.sync and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            # A value that is not finite on one rank makes the sum so on all: they skip together.
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
        new = flat.split([cache.numel() for cache in caches])
        if not torch.isfinite(flat).all():
            self.skipped_commits += 1
            self._log_nonfinite(branches, new)
            return
        for branch, values in zip(branches, new, strict=True):
            branch.cache.copy_(values.view_as(branch.cache))

    def _log_nonfinite(self, branches: Iterable[GRC], new: Iterable[Tensor]) -> None:
        if self._nonfinite_logged:
            return
        self._nonfinite_logged = True
        bad = next(b for b, values in zip(branches, new, strict=True) if not torch.isfinite(values).all())
        name = next(name for name, branch in self.grc_layers().items() if branch is bad)
        print_log(
            f'{name}: the new cache has values that are not finite. The step is not stored and training goes on with '
            'the caches as they were. This is said once.',
            logger='current',
            level=logging.WARNING,
        )


def _warn_of_missing_branches(module: CachedBackbone, incompatible) -> None:
    missing = [key for key in incompatible.missing_keys if '.grc.' in key]
    unused = [key for key in incompatible.unexpected_keys if '.grc.' in key]
    if not missing and not unused:
        return
    total = sum(len(branch.state_dict()) for branch in module.grc_layers().values())
    caches = sum(key.endswith('.grc.cache') for key in missing)
    message = (
        f'{len(missing)} of the {total} GRC tensors of {type(module).__name__} are not in the checkpoint'
        f'{_first_of(missing)}, {caches} caches among them: they keep the values that they have, and a fresh memory '
        'is empty.'
    )
    if unused:
        message += f' {len(unused)} GRC tensors of the checkpoint have no place in the model{_first_of(unused)}.'
    print_log(
        f'{message} Harmless where training starts from weights without GRC. Where a trained GRC model was meant, it '
        'is wrong: use the checkpoint with the config that it was trained with; a copy lies in its work dir.',
        logger='current',
        level=logging.WARNING,
    )


def _first_of(keys: list[str]) -> str:
    return f' ({keys[0]}{", ..." if len(keys) > 1 else ""})' if keys else ''
