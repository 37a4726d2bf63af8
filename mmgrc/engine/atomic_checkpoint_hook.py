"""Checkpoints that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.fileio import register_backend
from mmengine.fileio.backends import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

__all__ = ['AtomicCheckpointHook', 'AtomicLocalBackend', 'CheckpointWriteError', 'write_atomically']

_BACKEND = 'mmgrc_atomic_local'


class CheckpointWriteError(OSError):
    """A checkpoint could not be written. Those before it are untouched."""


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file so that a reader sees it whole or not at all, whatever happens in between.

    Raises:
        OSError: It cannot be written. What had its name before is still there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f'.{path.name}.', suffix='.part', dir=path.parent)
    try:
        with os.fdopen(descriptor, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp's files are for their owner alone; others' checkpoints are read too.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@register_backend(_BACKEND)
class AtomicLocalBackend(LocalBackend):
    """MMEngine's backend for local files, with atomic writes."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write ``obj`` to ``filepath``, see :func:`write_atomically`.

        Raises:
            CheckpointWriteError: It cannot be written.
        """
        try:
            write_atomically(filepath, obj)
        except OSError as error:
            raise CheckpointWriteError(
                f'{filepath} cannot be written ({error.strerror}; {len(obj) / 2**20:.1f} MiB). The checkpoints before '
                'it are whole. Make room there, and go on with --resume.'
            ) from error


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """MMEngine's hook for checkpoints, made safe against a full disk and a kill.

    A file is written beside its place and then renamed. With ``max_keep_ckpts`` the outdated one goes after the new one
    is there, not before: for that moment there is one more.

    Args:
        kwargs: The arguments of :class:`mmengine.hooks.CheckpointHook`. With ``out_dir`` on another than the local file
            system give ``backend_args`` for it, as there.
    """

    def __init__(self, **kwargs) -> None:
        out_dir = str(kwargs.get('out_dir') or '')
        if kwargs.get('backend_args') is None and kwargs.get('file_client_args') is None and '://' not in out_dir:
            kwargs['backend_args'] = {'backend': _BACKEND}
        super().__init__(**kwargs)
        self.kept = self.max_keep_ckpts
        if self.kept > 0:
            # The parent makes room before it writes: with one place more it does not.
            self.max_keep_ckpts += 1

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        super()._save_checkpoint_with_step(runner, step, meta)
        while 0 < self.kept < len(self.keep_ckpt_ids):
            outdated = self.keep_ckpt_ids.popleft()
            path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(outdated))
            if is_main_process() and self.file_backend.isfile(path):
                self.file_backend.remove(path)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))

    def save_now(self, runner: Runner, name: str) -> str:
        """Save a checkpoint in the middle of an epoch, after the current iteration, for ``--resume``.

        Called on every rank; rank 0 writes.

        Args:
            runner: The runner of the training.
            name: Name of the file; one of that name is replaced.

        Returns:
            Its path.
        """
        meta = {'epoch': runner.epoch, 'iter': runner.iter + 1}
        runner.save_checkpoint(self.out_dir, name, meta=meta, by_epoch=False, backend_args=self.backend_args)
        path = self.file_backend.join_path(self.out_dir, name)
        if is_main_process():
            write_atomically(Path(runner.work_dir) / 'last_checkpoint', path.encode())
        return path
