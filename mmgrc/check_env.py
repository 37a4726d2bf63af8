"""Check the machine: what is installed, what works, and the commands that fix the rest.

``python -m mmgrc.check_env`` also runs when ``import mmgrc`` fails. Each check imports what it needs, since any of it
may be missing or broken.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from .env.versions import (
    compile_mmcv_command,
    distribution_version,
    installed_version,
    rebuild_mmcv_command,
    requirements,
    version_problem,
)
from .version import __version__

__all__ = ['Finding', 'check_environment', 'main']

_BACKBONES = ('GRCPyramidVisionTransformer', 'GRCPyramidVisionTransformerV2', 'GRCSwinTransformer')
_MODULES = {'cv2': 'opencv-python', 'pycocotools': 'pycocotools', 'matplotlib': 'matplotlib', 'numpy': 'numpy'}
_OPS = {
    'compiled': 'compiled',
    'torchvision': "those of mmgrc, with torchvision's kernels",
    'pytorch': 'those of mmgrc, without compiled code',
}
_COCO_PARTS = ('annotations/instances_train2017.json', 'annotations/instances_val2017.json', 'train2017', 'val2017')


class Finding(NamedTuple):
    """The result of one check."""

    what: str
    found: str
    problem: str | None = None
    remedy: str | None = None
    """The command to type. Without a ``problem`` it is advice."""


def _versions() -> Iterator[Finding]:
    yield Finding('Python', sys.version.split()[0])
    for need in requirements():
        found = installed_version(need.package)
        problem = version_problem(need, found)
        if problem:
            yield Finding(need.package, found or 'not installed', problem, need.remedy)
        else:
            tested = found.split('+')[0] == need.tested
            yield Finding(need.package, found if tested else f'{found} (tested with {need.tested})')
    several = [name for name in ('mmcv', 'mmcv-lite', 'mmcv-full', 'onedl-mmcv') if distribution_version(name)]
    if len(several) > 1:
        yield Finding(
            ', '.join(several),
            'installed together',
            'they share a folder, and each overwrites files of the others',
            f'pip uninstall -y {" ".join(several)} && {next(n.remedy for n in requirements() if n.package == "mmcv")}',
        )


def _modules() -> Iterator[Finding]:
    for module, package in _MODULES.items():
        try:
            found = importlib.import_module(module)
            yield Finding(package, str(getattr(found, '__version__', installed_version(package) or 'there')))
        except ImportError as error:
            remedy = f'pip install --force-reinstall {package}'
            if 'shared object file' in str(error):
                remedy = 'apt-get install -y libgl1 libglib2.0-0'
            yield Finding(package, 'cannot be imported', str(error), remedy)


def _pkg_resources() -> Iterator[Finding]:
    try:
        importlib.import_module('pkg_resources')
    except ImportError as error:
        remedy = next(need.remedy for need in requirements() if need.package == 'setuptools')
        yield Finding('base configs of mmdet', 'cannot be read', f'mmengine needs pkg_resources: {error}', remedy)


def _ops(device: str) -> Iterator[Finding]:
    import torch

    from .env.mmcv_ops import ops_in_use, provide_ops

    what = f'mmcv ops on {device}'
    rebuild = rebuild_mmcv_command()
    provide_ops()
    try:
        from mmcv.ops import get_compiling_cuda_version, nms, roi_align
    except ImportError as error:
        # `undefined symbol`: compiled against another torch.
        yield Finding(what, 'cannot be loaded', f'they do not fit torch {torch.__version__}: {error}', rebuild)
        return
    used = ops_in_use(device)
    remedy = rebuild if used == 'compiled' else compile_mmcv_command()
    try:
        # The second box is inside the first, and the third is next to it.
        boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9.5], [20, 20, 30, 30]], device=device)
        kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), 0.5)[1].tolist()
        # The middle of a map whose values are its columns.
        grid = torch.arange(8.0, device=device).expand(1, 1, 8, 8).contiguous()
        rois = torch.tensor([[0, 2, 2, 6, 6]], dtype=torch.float32, device=device)
        value = roi_align(grid, rois, (1, 1), 1.0, 2, 'avg', True).item()
    except Exception as error:
        problem = str(error).splitlines()[0]
        if used == 'compiled' and device != 'cpu':
            built = get_compiling_cuda_version()
            problem = f'mmcv was compiled for CUDA {built}, torch for {torch.version.cuda}: {problem}'
            remedy = f'CUDA_HOME=/usr/local/cuda {rebuild}'
        yield Finding(what, 'fail', problem, remedy)
        return
    if kept != [0, 2] or abs(value - 3.5) > 1e-4:
        yield Finding(what, 'wrong', f'nms kept {kept}, not [0, 2]; roi_align gave {value}, not 3.5', remedy)
    elif used == 'pytorch' and device != 'cpu':
        advice = f'faster with the torchvision for torch {torch.__version__}'
        yield Finding(what, f'right: {_OPS[used]}; {advice}', None, 'pip install torchvision')
    else:
        yield Finding(what, f'right: {_OPS[used]}')


def _gpu() -> Iterator[Finding]:
    import torch

    from .env.mmcv_ops import ops_in_use

    if torch.cuda.is_available():
        yield Finding('GPU', f'{torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}')
        yield from _ops('cuda:0')
    elif Path('/dev/nvidia0').exists() and os.environ.get('CUDA_VISIBLE_DEVICES') not in ('', '-1'):
        built = torch.version.cuda
        problem = 'torch is a build for the CPU' if built is None else f'the driver does not serve CUDA {built}'
        remedy = 'pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu126'
        if ops_in_use() == 'compiled':
            # They fit one torch. mmcv-lite fits any.
            remedy += f' && ({rebuild_mmcv_command()})'
        yield Finding('GPU', 'not usable', f'there is one, but {problem}', remedy)
    else:
        yield Finding('GPU', 'none: everything runs on the CPU')


def _operations() -> Iterator[Finding]:
    from mmgrc.models.ops import describe_ops

    yield Finding('operations', describe_ops())


def _registry() -> Iterator[Finding]:
    importlib.import_module('mmgrc.models.backbones')
    importlib.import_module('mmgrc.engine')
    from mmdet.registry import HOOKS, MODELS

    for registry, names in ((MODELS, _BACKBONES), (HOOKS, ('GRCMonitorHook',))):
        missing = [name for name in names if registry.get(name) is None]
        if missing:
            remedy = 'pip install --force-reinstall --no-deps mmgrc'
            yield Finding(f'{registry.name} registry', 'incomplete', f'no {", ".join(missing)}', remedy)
        else:
            yield Finding(f'{registry.name} registry', ', '.join(names))


def _forward() -> Iterator[Finding]:
    """Run a narrow form of the demo's detector on one image of noise."""
    import numpy as np
    import torch
    from mmdet.structures import DetDataSample

    from mmgrc.runs.config import build_model, load_config, register_config_prefix

    register_config_prefix()
    config = load_config(
        'mmgrc::shapes/mask_rcnn_grc_pvt.py',
        {'model.backbone.embed_dims': 16, 'model.neck.in_channels': [16, 32, 80, 128]},
    )
    device = 'cuda:0' if torch.cuda.is_available() else 'cpu'
    model = build_model(config).to(device).eval()
    sample = DetDataSample(metainfo={'img_shape': (64, 96), 'ori_shape': (64, 96), 'scale_factor': (1.0, 1.0)})
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, 64, 96), np.uint8))
    with torch.no_grad():
        (result,) = model.test_step({'inputs': [image], 'data_samples': [sample]})
    found = result.pred_instances
    if not torch.isfinite(found.scores).all() or found.masks.shape[1:] != (64, 96):
        yield Finding('a forward', 'wrong', 'boxes or masks are wrong', rebuild_mmcv_command())
    else:
        yield Finding('a forward', f'Mask R-CNN with GRC-PVT on {device}')


def _pretraining() -> Iterator[Finding]:
    from .env.pretraining import REQUIREMENTS, PretrainingError, check_pretraining, is_installed
    from .env.torchvision_ops import provide_torchvision

    remedy = 'make env-pretrain'
    if not is_installed():
        yield Finding('pre-training', 'mmpretrain is not installed; detection does not need it', None, remedy)
        return
    try:
        check_pretraining()
    except PretrainingError as error:
        yield Finding('pre-training', 'does not work', str(error), remedy)
        return
    versions = ', '.join(f'{need.package} {installed_version(need.package)}' for need in REQUIREMENTS)
    fits = '' if provide_torchvision() else '; the operators of torchvision do not fit torch, and are not needed'
    yield Finding('pre-training', versions + fits)


def _coco() -> Iterator[Finding]:
    root = Path(os.environ.get('COCO_ROOT') or 'data/coco')
    missing = [part for part in _COCO_PARTS if not (root / part).exists()]
    remedy = 'export COCO_ROOT=/path/to/coco (with annotations/, train2017/, val2017/)'
    if not missing:
        yield Finding('COCO', str(root.resolve()))
    elif 'COCO_ROOT' not in os.environ and not root.exists():
        yield Finding('COCO', 'not found; `make demo` needs no data set', None, remedy)
    else:
        yield Finding('COCO', f'incomplete: {root}', f'there is no {", ".join(missing)}', remedy)


def check_environment() -> Iterator[Finding]:
    """Check versions, compiled ops, registries, a forward, what pre-training needs, and COCO.

    Checks that depend on a failed one are skipped.

    Yields:
        Findings, in the order in which they should be fixed.
    """
    healthy = True
    groups: list[Callable[[], Iterator[Finding]]] = [_versions, _modules, _pkg_resources]
    groups += [_operations, lambda: _ops('cpu'), _gpu, _registry, _forward, _pretraining]
    for group in groups:
        if not healthy:
            break
        try:
            for finding in group():
                healthy = healthy and finding.problem is None
                yield finding
        except Exception as error:
            # Whatever fails, the report continues to its end.
            healthy = False
            message = f'{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ""}'
            yield Finding(group.__name__.strip('_'), 'fails', message, 'make env')
    yield from _coco()


def main() -> int:
    """Print the report.

    Returns:
        0, or 1 if something would fail.
    """
    argparse.ArgumentParser(prog='check_env', description=__doc__).parse_args()
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError as error:
        # It comes with the extra `detection`, as most of what is checked here does.
        print(f'check_env: {error}. Type: pip install rich', file=sys.stderr)
        return 1
    warnings.filterwarnings('ignore')
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    table = Table(title=f'mmgrc {__version__}', title_justify='left')
    for column in ('', 'what', 'found'):
        table.add_column(column, overflow='fold')
    problems, advice = [], []
    for finding in check_environment():
        mark = '[red]FAIL[/red]' if finding.problem else '[green]ok[/green]'
        if finding.problem:
            problems.append(finding)
        elif finding.remedy:
            mark = '[yellow]-[/yellow]'
            advice.append(finding)
        table.add_row(mark, finding.what, finding.found)
    console.print(table)
    for finding in (*problems, *advice):
        console.print(f'{finding.what}: {finding.problem or finding.found}', markup=False, soft_wrap=True)
        console.print(f'    {finding.remedy}', markup=False, soft_wrap=True, style='bold')
    console.print(f'{len(problems)} things would fail' if problems else 'All is well.')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
