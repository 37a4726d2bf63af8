"""Write a detector as one ONNX file, from images to detections, with operators of the standard alone."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from mmgrc.engine.files import write_atomically
from mmgrc.runs.config import get_test_pipeline
from mmgrc.runs.error import InputError
from mmgrc.runs.preflight import check_output_file
from mmgrc.version import __version__

from .detectors import OneStage, TwoStage, make_exportable
from .ops import onnx_translations
from .supported import check_supported

__all__ = ['check_libraries', 'export_onnx']

# Steps of a test pipeline that do not change the image.
_PLAIN_STEPS = ('LoadImageFromFile', 'LoadAnnotations', 'PackDetInputs')


def check_libraries() -> None:
    """Check that the libraries that write ONNX are installed.

    Raises:
        InputError: One is missing.
    """
    missing = [name for name in ('onnx', 'onnxscript') if find_spec(name) is None]
    if missing:
        raise InputError(f'writing ONNX needs {" and ".join(missing)}. Type: pip install onnx onnxscript')


def export_onnx(model: nn.Module, path: str | Path) -> None:
    """Write a detector as one ONNX file, with its weights.

    Inputs and outputs are those of :meth:`~mmgrc.export.detectors.TwoStage.forward`. The number of images is dynamic.
    So are rows and columns, in multiples of ``pad_divisor`` in the metadata.

    Args:
        model: What :func:`~mmgrc.inference.load_detector` gave, on the CPU.
        path: File to write.

    Raises:
        InputError: A part of the detector cannot be exported, a library is missing, there can be no such file, it has
            another suffix than ``.onnx``, or the config has no test pipeline.
        OSError: The file cannot be written. An earlier file of that name is intact.
    """
    check_libraries()
    check_supported(model)
    check_output_file(path, ('.onnx',))
    metadata, exportable = _metadata(model), make_exportable(model)
    # With gradients enabled, PyTorch traces another kernel for Swin's attention than the one it lowers to ONNX.
    with torch.no_grad(), _silence_exporter():
        program = torch.onnx.export(
            _trace(exportable),
            dynamo=True,
            verbose=False,
            input_names=['images', 'sizes'],
            output_names=list(exportable.outputs),
            custom_translation_table=onnx_translations(),
        )
    program.model.metadata_props.update(metadata)
    write_atomically(path, program.model_proto.SerializeToString())


@contextlib.contextmanager
def _silence_exporter() -> Iterator[None]:
    """Silence what PyTorch's exporter says about itself and about torchvision's operators, of which none is needed."""
    logger = logging.getLogger('torch.onnx')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message=r'`isinstance\(treespec', category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _trace(exportable: OneStage | TwoStage) -> ExportedProgram:
    """Trace the detector with dynamic sizes.

    Raises:
        InputError: Its backbone or neck cannot be traced.
    """
    model = exportable.model
    divisor = model.data_preprocessor.pad_size_divisor
    batch, rows, cols = Dim('batch', min=1, max=1024), Dim('rows', min=1, max=512), Dim('cols', min=1, max=512)
    # An example with one image, or with one window of Swin in a stage, would fix that number. Nothing is computed.
    images = torch.zeros(2, 3, 24 * divisor, 32 * divisor, dtype=torch.uint8)
    shapes = ({0: batch, 2: divisor * rows, 3: divisor * cols}, {0: batch})
    try:
        return torch.export.export(exportable, (images, torch.tensor([images.shape[2:]] * 2)), dynamic_shapes=shapes)
    except Exception as error:
        # PyTorch raises many types here.
        reason = next(iter(str(error).strip().splitlines()), '')
        raise InputError(
            f'torch.export cannot trace the detector for images of any size: {type(error).__name__}: {reason} Its '
            f'backbone is a {type(model.backbone).__name__}. For stock PVT and Swin use the backbone with GRC and '
            'grc=dict(stages=()): it loads the same checkpoint'
        ) from error


def _metadata(model: nn.Module) -> dict[str, str]:
    """What a program must know to use the file."""
    steps = [step for step in get_test_pipeline(model.cfg) if step['type'].split('.')[-1] not in _PLAIN_STEPS]
    content = {
        'mmgrc': __version__,
        'detector': type(model).__name__,
        'classes': json.dumps(model.dataset_meta['classes']),
        'pad_divisor': str(model.data_preprocessor.pad_size_divisor),
        'test_pipeline': json.dumps(steps, default=str),
    }
    if hasattr(model, 'roi_head') and model.roi_head.with_mask:
        content['mask_thr'] = str(model.roi_head.test_cfg.mask_thr_binary)
    return content
