"""Loss and mAP of a run over time."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt

__all__ = ['plot_run', 'read_scalars']


def read_scalars(work_dir: str | Path) -> tuple[dict[int, dict], dict[int, dict]]:
    """Read what MMEngine logged in a work dir, the runs before each resumption too.

    Args:
        work_dir: The work dir of a training.

    Returns:
        Training records by iteration and validation records by epoch. Where a resumed run repeats a step, its record
        counts.

    Raises:
        FileNotFoundError: There is no log.
    """
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    training, validation = {}, {}
    for file in files:
        for line in file.read_text().splitlines():
            record = json.loads(line)
            if 'loss' in record:
                training[record['iter']] = record
            elif any(key.startswith('coco/') for key in record):
                validation[record['step']] = record
    if not training:
        raise FileNotFoundError(f'there is no training log in {work_dir}: give the work dir of a training')
    return dict(sorted(training.items())), dict(sorted(validation.items()))


def plot_run(work_dir: str | Path, out: str | Path) -> None:
    """Plot the losses over the iterations and the mAP over the epochs.

    Args:
        work_dir: The work dir of a training.
        out: Picture to write.

    Raises:
        FileNotFoundError: There is no log.
    """
    training, validation = read_scalars(work_dir)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    names = [key for key in next(iter(training.values())) if key.startswith('loss')]
    for name, style in zip(names, ['-', '--', '-.', ':', (0, (3, 1, 1, 1)), (0, (5, 3))], strict=False):
        left.plot(list(training), [record.get(name) for record in training.values()], linestyle=style, label=name)
    left.set(xlabel='iteration', ylabel='loss', title='Loss')
    left.set_ylim(bottom=0)
    metrics = [key for key in next(iter(validation.values()), {}) if key.endswith(('_mAP', '_mAP_50'))]
    for name, marker in zip(metrics, 'osD^', strict=False):
        values = [record.get(name) for record in validation.values()]
        right.plot(list(validation), values, marker=marker, label=name.removeprefix('coco/'))
    right.set(xlabel='epoch', ylabel='mAP', title='Validation', ylim=(0, 1))
    for axis in (left, right):
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    plt.close(figure)
