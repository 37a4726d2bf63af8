"""Checkpoints that are written atomically."""

from __future__ import annotations

from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.fileio import register_backend
from mmengine.fileio.backends import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from .files import write_atomically

__all__ = ['AtomicCheckpointHook', 'AtomicLocalBackend', 'CheckpointWriteError']

_BACKEND = 'mmgrc_atomic_local'


class CheckpointWriteError(OSError):
    """A checkpoint could not be written. Earlier checkpoints are intact."""


@register_backend(_BACKEND)
class AtomicLocalBackend(LocalBackend):
    """MMEngine's backend for local files, with atomic writes."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write ``obj`` to ``filepath`` by :func:`write_atomically`.

        Raises:
            CheckpointWriteError: It cannot be written.
        """
        try:
            write_atomically(filepath, obj)
        except OSError as error:
            raise CheckpointWriteError(
                f'{filepath} cannot be written ({error.strerror}; {len(obj) / 2**20:.1f} MiB). Earlier checkpoints '
                'are intact. Free some space, and continue with --resume.'
            ) from error


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """MMEngine's checkpoint hook, made safe against a full disk and a kill.

    It writes a temporary file in the same folder and then renames it. With ``max_keep_ckpts`` and ``save_best`` it
    removes the outdated checkpoint after the new one is complete, so for a moment there is one more.

    A validation without the value that ``save_best`` names is a warning and no improvement. MMEngine would end the
    training.

    Args:
        kwargs: The arguments of :class:`mmengine.hooks.CheckpointHook`. For an ``out_dir`` that is not on a
            local file system, give its ``backend_args``.
    """

    def __init__(self, **kwargs) -> None:
        out_dir = str(kwargs.get('out_dir') or '')
        if kwargs.get('backend_args') is None and kwargs.get('file_client_args') is None and '://' not in out_dir:
            kwargs['backend_args'] = {'backend': _BACKEND}
        super().__init__(**kwargs)
        self.kept = self.max_keep_ckpts
        if self.kept > 0:
            # The parent removes checkpoints before it writes. With a limit that is higher by one it does not.
            self.max_keep_ckpts += 1

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        super()._save_checkpoint_with_step(runner, step, meta)
        while 0 < self.kept < len(self.keep_ckpt_ids):
            outdated = self.keep_ckpt_ids.popleft()
            self._remove(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(outdated)))
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))

    def _remove(self, path: str) -> None:
        if not is_main_process():
            return
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):
            # As DeepSpeed writes them.
            self.file_backend.rmtree(path)

    @property
    def _best(self) -> dict[str, str | None]:
        """The best checkpoint of each value of ``save_best``. MMEngine has another attribute for a single one."""
        return self.best_ckpt_path_dict if len(self.key_indicators) > 1 else {'': self.best_ckpt_path}

    @_best.setter
    def _best(self, paths: dict[str, str | None]) -> None:
        if len(self.key_indicators) > 1:
            self.best_ckpt_path_dict = paths
        else:
            self.best_ckpt_path = paths['']

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self.save_best:
            return
        missing = [key for key in self.key_indicators if key != 'auto' and key not in metrics]
        if missing:
            runner.logger.warning(
                f'save_best: the validation at iteration {runner.iter} gave no {" and no ".join(missing)}, but '
                f"{', '.join(metrics)}. This counts as no improvement. MMDetection's COCO metric gives no values if "
                'nothing was detected.'
            )
        before = self._best
        # The parent removes what is named here before it writes.
        self._best = dict.fromkeys(before)
        try:
            super()._save_best_checkpoint(runner, {**metrics, **dict.fromkeys(missing)})
        except BaseException:
            self._best = before
            raise
        written = self._best
        self._best = {key: written[key] or path for key, path in before.items()}
        for key, path in before.items():
            # A resumed run may have replaced the file of the same name.
            if path and path != self._best[key]:
                self._remove(path)

    def save_now(self, runner: Runner, name: str) -> str:
        """Save a checkpoint in the middle of an epoch, after the current iteration, for ``--resume``.

        Called on every rank; rank 0 writes.

        Args:
            runner: The runner of the training.
            name: Name of the file. An existing file is replaced.

        Returns:
            Its path.
        """
        meta = {'epoch': runner.epoch, 'iter': runner.iter + 1}
        runner.save_checkpoint(self.out_dir, name, meta=meta, by_epoch=False, backend_args=self.backend_args)
        path = self.file_backend.join_path(self.out_dir, name)
        if is_main_process():
            write_atomically(Path(runner.work_dir) / 'last_checkpoint', path.encode())
        return path
