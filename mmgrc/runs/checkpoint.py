"""Checkpoint files: their allowed content, and how to read them."""

from __future__ import annotations

import pickle
import re
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.runner import checkpoint as mmengine_checkpoint

__all__ = ['allow_mmengine_checkpoints', 'last_good_checkpoint', 'read_checkpoint']


def _history_statistic(owner: object, name: str) -> object:
    """Replace ``getattr``, with which a pickled log history names its own statistics. Nothing else is looked up.

    Raises:
        UnpicklingError: The file needs any other attribute.
    """
    if owner is not HistoryBuffer or name not in ('current', 'max', 'mean', 'min'):
        raise pickle.UnpicklingError(f'the file needs the attribute {name!r} of {owner!r}.')
    return getattr(owner, name)


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load`` accept the objects that MMEngine puts into its checkpoints, and no others.

    Since torch 2.6 files are read with ``weights_only=True``, which refuses MMEngine's log history and NumPy arrays.
    This function allows them by name. The check stays on, also in the maintained fork of MMEngine.
    """
    scalar_types = (np.float64, np.float32, np.int64, np.int32, np.uint8, np.bool_)
    # NumPy 1 has other names for it, and wrote them into files.
    arrays = (np.core if np.__version__.startswith('1.') else np._core).multiarray
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            (_history_statistic, 'builtins.getattr'),
            *((arrays._reconstruct, f'numpy.{core}.multiarray._reconstruct') for core in ('_core', 'core')),
            *((arrays.scalar, f'numpy.{core}.multiarray.scalar') for core in ('_core', 'core')),
            np.ndarray,
            np.dtype,
            *(type(np.dtype(scalar)) for scalar in scalar_types),
        ]
    )
    # The fork's function allows all of getattr, and reads a file that was refused again without the check.
    if hasattr(mmengine_checkpoint, '_safe_torch_load'):
        mmengine_checkpoint._safe_torch_load = partial(torch.load, weights_only=True)


def read_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint file onto the CPU.

    Raises:
        ValueError: The file is not a checkpoint, is truncated or damaged, or contains objects that are not allowed.
    """
    try:
        _check_sums(Path(path).expanduser())
        checkpoint = torch.load(Path(path).expanduser(), map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's message is long, and advises turning the check off.
        reason = re.search(r'WeightsUnpickler error:\s*(.*?)(\. Please|$)', str(error), re.M)
        reason = reason[1].rstrip('.') if reason else 'not a torch file'
        raise ValueError(
            f'{path} cannot be read as weights: {reason}. It is not a checkpoint, or contains objects that could '
            'run code. If you trust it, save only its state dict.'
        ) from error
    except (RuntimeError, EOFError, OSError, zipfile.BadZipFile) as error:
        reason = str(error).split('\n')[0]
        raise ValueError(
            f'{path} cannot be read: {reason}. It is not a checkpoint, or is truncated or damaged.'
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f'{path} contains a {type(checkpoint).__name__}, not a dictionary of weights')
    return checkpoint


def _check_sums(path: Path) -> None:
    """Compare a file's content with its checksums, which torch writes but does not read.

    After ``torch.serialization.set_crc32_options(False)``, each checksum is zero. Such a file is accepted.

    Raises:
        BadZipFile: They differ.
    """
    # Before version 1.6 torch wrote another format, without checksums.
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as file:
        if not any(entry.CRC for entry in file.infolist()):
            return
        if damaged := file.testzip():
            raise zipfile.BadZipFile(f'the checksum of {damaged} in it is wrong')


def last_good_checkpoint(work_dir: str | Path) -> tuple[Path | None, list[str]]:
    """Find the checkpoint from which to resume a training in a work dir.

    It is the one that MMEngine's file ``last_checkpoint`` names. If that one is missing or cannot be read, it is the
    newest of the others.

    Returns:
        Its path, or None if there is none, and why each newer one was skipped.
    """
    work_dir = Path(work_dir)
    files = [
        (path.stat().st_mtime_ns, int(match[2] or 0), path)
        for path in work_dir.glob('*.pth')
        if (match := re.fullmatch(r'(epoch_|iter_|stopped)(\d*)\.pth', path.name))
    ]
    candidates = [path for *_, path in sorted(files, reverse=True)]
    pointer = work_dir / 'last_checkpoint'
    if pointer.is_file() and (named := Path(pointer.read_text().strip())).is_file():
        candidates = [named, *(path for path in candidates if not path.samefile(named))]
    skipped = []
    for path in candidates:
        try:
            read_checkpoint(path)
        except ValueError as error:
            skipped.append(str(error))
        else:
            return path, skipped
    return None, skipped
