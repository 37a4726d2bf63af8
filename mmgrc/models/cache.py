"""The state of a GRC backbone: which caches there are, and the one place where they change."""

from __future__ import annotations

import logging

import torch
import torch.distributed as dist
from mmengine.logging import print_log
from torch import Tensor, nn

from .grc import GRC, GRCConfig

__all__ = ['CachedBackbone']


class CachedBackbone(nn.Module):
    """Mixin for backbones whose attention layers have a :class:`GRC` branch.

    A backbone reads its caches with :meth:`read_caches` before its layers run, and hands what they propose to
    :meth:`commit_caches` after the last. In between nothing changes.
    """

    grc: GRCConfig
    skipped_commits: int
    """Training steps since the start of the process that were not stored, for a value that is not finite."""

    def init_caches(self, grc: GRCConfig) -> None:
        """Take the options and make loading loud; called once, when all branches are in place."""
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

    def read_caches(self) -> dict[GRC, Tensor]:
        """The caches as constants of this step: copies in training, since a commit follows before the backward pass."""
        return {b: b.cache.clone() if self.training else b.cache for b in self.grc_layers().values()}

    @torch.compiler.disable
    @torch.no_grad()
    def commit_caches(self, proposals: dict[GRC, Tensor]) -> None:
        """Write what a training step proposes, on all ranks alike.

        One check and one collective serve all layers. A step with a value that is not finite, on any rank, is not
        written at all.

        Args:
            proposals: For each branch its new cache, (1, T_m, D_m).
        """
        if not proposals:
            return
        flat = torch.cat([proposal.flatten() for proposal in proposals.values()])
        if self.grc.sync and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            # A value that is not finite on one rank makes the sum so on all: they skip together.
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
        new = flat.split([proposal.numel() for proposal in proposals.values()])
        if not torch.isfinite(flat).all():
            self.skipped_commits += 1
            self._log_nonfinite(proposals, new)
            return
        for branch, values in zip(proposals, new, strict=True):
            branch.cache.copy_(values.view_as(branch.cache))

    def _log_nonfinite(self, proposals: dict[GRC, Tensor], new: tuple[Tensor, ...]) -> None:
        if self._nonfinite_logged:
            return
        self._nonfinite_logged = True
        bad = next(b for b, values in zip(proposals, new, strict=True) if not torch.isfinite(values).all())
        name = next(name for name, branch in self.grc_layers().items() if branch is bad)
        print_log(
            f'{name}: the new cache has values that are not finite. The step is not stored and training goes on with '
            'the caches as they were. This is said once.',
            logger='current',
            level=logging.WARNING,
        )


def _warn_of_missing_branches(module: CachedBackbone, incompatible) -> None:
    missing = {key for key in incompatible.missing_keys if '.grc.' in key}
    if not missing:
        return
    total = sum(len(branch.state_dict()) for branch in module.grc_layers().values())
    print_log(
        f'{len(missing)} of the {total} GRC tensors of {type(module).__name__} are not in the checkpoint: they keep '
        'the values that they have, and a fresh memory is empty. Harmless where training starts from weights without '
        'GRC; wrong where a trained GRC model was meant.',
        logger='current',
        level=logging.WARNING,
    )
