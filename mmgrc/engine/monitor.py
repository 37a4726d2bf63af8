"""Log what the memory does during training."""

from __future__ import annotations

from functools import partial

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from mmgrc.models.backbones import CachedBackbone
from mmgrc.models.grc import GRC

__all__ = ['GRCMonitorHook']


@HOOKS.register_module()
class GRCMonitorHook(Hook):
    """Log what the memory does to the runner's visualizer (its json, TensorBoard, ...), every few iterations.

    A record has, for each layer with a memory, under the layer's name in the model:

    - ``grc_sigma_lambda``: σ(λ), the weight of the memory in the mix, averaged over the heads;
    - ``grc_update_gate``, ``grc_reset_gate``: means of the gates over images, cells and channels, in (0, 1);
    - ``grc_cache_rms``: root mean square of the cache after the step;
    - ``grc_cache_change``: root mean square of the change in the step, relative to ``grc_cache_rms``;
    - ``grc_rank_drift``: largest difference of a cache value between ranks, if there are several. It is 0 with
      ``grc.sync``;

    and ``grc_skipped_steps``, the number of steps of this process that were not stored because a value was not finite.
    In all other iterations the hook does nothing. A model without a memory logs nothing.

    Args:
        interval: Iterations from one record to the next.

    Raises:
        ValueError: ``interval`` is not a whole number above 0.
    """

    # After the optimizer's step, before the logger's.
    priority = 'NORMAL'

    def __init__(self, interval: int = 50) -> None:
        if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
            raise ValueError(f'GRCMonitorHook: interval={interval!r}: give a whole number above 0')
        self.interval = interval
        self._backbones: list[CachedBackbone] = []
        self._layers: dict[str, GRC] = {}
        self._gates: dict[str, tuple[Tensor, Tensor]] = {}
        self._before: dict[str, Tensor] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def before_train(self, runner: Runner) -> None:
        """Find the layers."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._backbones = [module for module in model.modules() if isinstance(module, CachedBackbone)]
        self._layers = {
            name.removesuffix('.attn.grc'): module for name, module in model.named_modules() if isinstance(module, GRC)
        }

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """If the iteration is logged, copy the caches and watch the gates of the next forward."""
        if not self._layers or not self.every_n_train_iters(runner, self.interval):
            return
        self._before = {name: layer.cache.clone() for name, layer in self._layers.items()}
        self._handles = [
            layer.register_forward_hook(partial(self._watch_gates, name)) for name, layer in self._layers.items()
        ]

    def _watch_gates(self, name: str, layer: GRC, args: tuple, output: tuple) -> None:
        x, attn_out, hw_shape, cache, resampling = args
        with torch.no_grad():
            update, reset = layer.gates(cache, layer.summarize(x, attn_out, hw_shape, resampling))
        self._gates[name] = (update.mean(), reset.mean())

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Log the values."""
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        records = {}
        for name, layer in self._layers.items():
            rms = layer.cache.square().mean().sqrt()
            change = (layer.cache - self._before[name]).square().mean().sqrt()
            records[f'grc_sigma_lambda/{name}'] = layer.lam.detach().sigmoid().mean()
            # A compiled model does not call hooks, so there are no gates to log.
            if name in self._gates:
                records[f'grc_update_gate/{name}'], records[f'grc_reset_gate/{name}'] = self._gates[name]
            records[f'grc_cache_rms/{name}'] = rms
            records[f'grc_cache_change/{name}'] = change / rms.clamp(min=torch.finfo(rms.dtype).tiny)
        records.update(self._rank_drift())
        # One transfer from the device for all values.
        values = torch.stack([value.float() for value in records.values()]).tolist()
        skipped = sum(backbone.skipped_commits for backbone in self._backbones)
        runner.visualizer.add_scalars(
            {**dict(zip(records, values, strict=True)), 'grc_skipped_steps': skipped}, step=runner.iter + 1
        )
        self._handles, self._gates, self._before = [], {}, {}

    def _rank_drift(self) -> dict[str, Tensor]:
        if get_world_size() == 1:
            return {}
        caches = [layer.cache.flatten() for layer in self._layers.values()]
        largest, smallest = torch.cat(caches), torch.cat(caches)
        all_reduce(largest, 'max')
        all_reduce(smallest, 'min')
        drifts = (largest - smallest).split([len(cache) for cache in caches])
        return {f'grc_rank_drift/{name}': drift.max() for name, drift in zip(self._layers, drifts, strict=True)}
