"""Compare two models in time, memory, parameters and FLOPs, on random input and without a data set."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from mmdet.testing._utils import demo_mm_inputs
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .config import build_model, load_config
from .error import InputError
from .preflight.datasets import head_classes

__all__ = [
    'Options',
    'Result',
    'Spread',
    'check_comparison',
    'compare',
    'count_flops',
    'memoryless_config',
    'stock_config',
]

DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}
_OBJECTS = 8
"""Number of objects in each random training image."""


@dataclass(frozen=True)
class Options:
    """What to measure, and how.

    Args:
        mode: ``'eval'``: the forward pass alone; ``'train'``: forward and backward.
        part: ``'backbone'``, or ``'detector'``: losses in training, predictions in evaluation.
        size: Rows and columns of an image, in pixels.
        batch: Images at a time.
        dtype: A key of ``DTYPES``. Types other than fp32 use autocast.
        device: A torch device.
        compile: Whether ``torch.compile`` is used, for both models.
        runs: Timed runs of each model, alternating.
        threads: CPU threads, for both models. None: torch's default.
    """

    mode: str = 'eval'
    part: str = 'backbone'
    size: tuple[int, int] = (800, 1344)
    batch: int = 1
    dtype: str = 'fp32'
    device: str = 'cpu'
    compile: bool = False
    runs: int = 5
    threads: int | None = None

    def check(self) -> None:
        """Raise a :class:`~mmgrc.runs.error.InputError` that names the first option with an invalid value."""
        for name, allowed in (('mode', ('eval', 'train')), ('part', ('backbone', 'detector')), ('dtype', DTYPES)):
            if getattr(self, name) not in allowed:
                raise InputError(f'{name} {getattr(self, name)!r}: allowed are {", ".join(allowed)}')
        if min(self.size) < 32:
            raise InputError(f'size {self.size}: rows and columns must be at least 32 pixels')
        for name in ('batch', 'runs', 'threads'):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f'{name} {value}: give a number of at least 1')
        try:
            torch.empty(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f'device {self.device!r} cannot be used: {error}') from error


@dataclass(frozen=True)
class Spread:
    """Seconds per pass: the median of all runs, the fastest and the slowest."""

    median: float
    fastest: float
    slowest: float


@dataclass(frozen=True)
class Result:
    """The measurements of one model."""

    name: str
    seconds: Spread
    images_per_second: float
    peak_memory: float
    """Bytes above those of the process before the model was built. On a GPU, those that torch allocated."""
    parameters: int
    flops: int
    """Floating-point operations of one forward pass. A multiplication and an addition count as two. They
    include convolutions, linear layers and all attention, the memory's too. Operators of mmcv do not count."""


def stock_config(config: Config) -> Config:
    """The same config on MMDetection's class of the backbone, without a memory.

    Raises:
        InputError: The backbone is not one of this package.
    """
    config = copy.deepcopy(config)
    backbone = config.model.backbone
    backbone.type = f'mmdet.{_grc_name(backbone).removeprefix("GRC")}'
    backbone.pop('grc', None)
    return config


def memoryless_config(config: Config) -> Config:
    """The same config with ``grc=dict(stages=())``: the class of this package without a memory.

    Raises:
        InputError: The backbone is not one of this package.
    """
    config = copy.deepcopy(config)
    backbone = config.model.backbone
    _grc_name(backbone)
    backbone.grc = {'stages': ()}
    return config


def _grc_name(backbone: Config) -> str:
    if not isinstance(backbone.type, str) or not backbone.type.startswith('GRC'):
        raise InputError(
            f'the backbone {backbone.type} has no GRC, so that "stock" and "no-memory" would be the same model: '
            'compare it with another config'
        )
    return backbone.type


_DERIVED = {'stock': stock_config, 'no-memory': memoryless_config}


@functools.cache
def _load(path: str, against: str | None) -> Config:
    config = load_config(path)
    return _DERIVED[against](config) if against else config


def _build_pass(config: Config, options: Options) -> tuple[nn.Module, Callable[[], object]]:
    """The model, and a function that runs one pass."""
    torch.manual_seed(0)
    config = copy.deepcopy(config)
    # Nothing is downloaded: the values of the weights make no difference here.
    config.model.backbone.init_cfg = None
    detector = build_model(config)
    model = detector if options.part == 'detector' else detector.backbone
    model.init_weights()
    model.to(options.device).train(options.mode == 'train')
    run = torch.compile(model) if options.compile else model
    device = torch.device(options.device)

    def autocast() -> contextlib.AbstractContextManager:
        single = options.dtype == 'fp32'
        return contextlib.nullcontext() if single else torch.autocast(device.type, DTYPES[options.dtype])

    if options.part == 'backbone':
        images = torch.randn(options.batch, 3, *options.size, device=options.device)

        def forward() -> object:
            return run(images)

    else:
        heads = config.model.get('roi_head') or config.model
        classes = min((count for _, count in head_classes(config.model)), default=80)
        data = demo_mm_inputs(
            options.batch,
            (3, *options.size),
            [_OBJECTS] * options.batch,
            classes,
            with_mask='mask_head' in heads,
            device=options.device,
        )
        data = detector.data_preprocessor(data, training=options.mode == 'train')
        mode = 'loss' if options.mode == 'train' else 'predict'

        def forward() -> object:
            return run(**data, mode=mode)

    def evaluate() -> object:
        with torch.no_grad(), autocast():
            return forward()

    def train() -> None:
        model.zero_grad(set_to_none=True)
        with autocast():
            total = sum(value.float().mean() for value in _tensors(forward()) if value.requires_grad)
        total.backward()

    return model, train if options.mode == 'train' else evaluate


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    return [tensor for part in value for tensor in _tensors(part)]


def _seconds(run: Callable[[], object], device: str) -> float:
    # A CUDA GPU or that of a Mac: both return before they have computed.
    wait = torch.device(device).type != 'cpu'
    if wait:
        torch.accelerator.synchronize(device)
    start = time.perf_counter()
    run()
    if wait:
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start


def count_flops(config: Config, options: Options) -> int:
    """Count the floating-point operations of one forward pass, see :class:`Result`.

    A backbone is counted on the meta device, so nothing is computed.

    Args:
        config: The whole config.
        options: Only ``part``, ``size`` and ``batch`` are used.
    """
    device = 'meta' if options.part == 'backbone' else options.device
    # A compiled graph would hide its operations.
    plain = replace(options, mode='eval', dtype='fp32', compile=False, device=device)
    return _count(_build_pass(config, plain)[1])


@functools.cache
def _count_once(path: str, against: str | None, options: Options) -> int:
    return count_flops(_load(path, against), options)


def _count(run: Callable[[], object]) -> int:
    # Plain attention, since the counter does not know the fused CPU kernels.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


def _resident(field: str) -> float:
    """Bytes that this process uses now (``VmRSS``), or the most that it has used (``VmHWM``). NaN on Windows."""
    try:
        status = Path('/proc/self/status').read_text(encoding='utf-8')
    except FileNotFoundError:
        # Only Linux has the file. On macOS this is the peak, in bytes.
        try:
            import resource
        except ImportError:
            return math.nan
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # On Linux, ru_maxrss starts with the peak of the parent process.
    return int(status.split(f'{field}:')[1].split()[0]) * 1024


def _peak_memory(path: str, against: str | None, options: Options) -> float:
    """Run two passes, since the first one of training has no gradients yet. On a CPU it runs in its own process."""
    _set_up_process(options)
    config = _load(path, against)
    cuda = torch.device(options.device).type == 'cuda'
    if cuda:
        # The workspace of the matrix products is allocated once in a process, and neither model's.
        torch.ones(2, 2, device=options.device).mm(torch.ones(2, 2, device=options.device))
        torch.cuda.reset_peak_memory_stats(options.device)
    before = torch.cuda.memory_allocated(options.device) if cuda else _resident('VmRSS')
    _, run = _build_pass(config, options)
    for _ in range(2):
        run()
    if cuda:
        return torch.cuda.max_memory_allocated(options.device) - before
    return max(_resident('VmHWM') - before, 0)


def _set_up_process(options: Options) -> None:
    # Hide the models' messages about their initial weights.
    if not MMLogger.check_instance_created('mmengine'):
        MMLogger.get_instance('mmengine', log_level='ERROR')
    if options.threads is not None:
        torch.set_num_threads(options.threads)


def _sides(path: str, against: str) -> tuple[tuple[str, str | None], ...]:
    return (path, None), (path, against) if against in _DERIVED else (against, None)


@functools.cache
def _check_model(path: str, against: str | None) -> None:
    build_model(_load(path, against))


def check_comparison(path: str, against: str, options: Options) -> None:
    """Check the arguments of :func:`compare`, before anything is measured.

    Raises:
        InputError: An option or a config cannot be used.
    """
    options.check()
    for side in _sides(path, against):
        _check_model(*side)


def compare(path: str, against: str, options: Options) -> tuple[Result, Result]:
    """Measure and compare two models.

    Their timed runs alternate, so that other load on the machine affects both. Peak memory is measured on a CPU in a
    separate process for each, on a GPU by torch. The function checks that evaluation does not change the caches.

    Args:
        path: A config.
        against: Another one, or ``'stock'`` for MMDetection's class of the first one's backbone, or ``'no-memory'``
            for the first one with ``grc=dict(stages=())``.
        options: What to measure, and how.

    Returns:
        The measurements of both.

    Raises:
        InputError: An option or a config cannot be used.
    """
    check_comparison(path, against, options)
    _set_up_process(options)
    sides = _sides(path, against)
    names = (path, f'{against} {path}' if against in _DERIVED else against)
    cuda = torch.device(options.device).type == 'cuda'
    if cuda:
        peaks = [_peak_memory(*side, options) for side in sides]
    else:
        with multiprocessing.get_context('spawn').Pool(1, maxtasksperchild=1) as pool:
            peaks = [pool.apply(_peak_memory, (*side, options)) for side in sides]
    built = [_build_pass(_load(*side), options) for side in sides]
    states = [{key: value.clone() for key, value in model.named_buffers()} for model, _ in built]
    for _, run in built:
        # A GPU raises its clock in the first passes.
        for _ in range(3 if cuda else 1):
            run()
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(options.runs):
        for taken, (_, run) in zip(seconds, built, strict=True):
            taken.append(_seconds(run, options.device))
    if options.mode == 'eval':
        for (model, _), state in zip(built, states, strict=True):
            assert all(torch.equal(value, state[key]) for key, value in model.named_buffers())
    same = replace(options, mode='eval', size=tuple(options.size), dtype='fp32', compile=False, runs=1)
    flops = [_count_once(*side, same) for side in sides]
    parameters = [sum(p.numel() for p in model.parameters()) for model, _ in built]
    return tuple(
        Result(
            name=name,
            seconds=Spread(statistics.median(taken), min(taken), max(taken)),
            images_per_second=options.batch / statistics.median(taken),
            peak_memory=peak,
            parameters=count,
            flops=total,
        )
        for name, taken, peak, count, total in zip(names, seconds, peaks, parameters, flops, strict=True)
    )
