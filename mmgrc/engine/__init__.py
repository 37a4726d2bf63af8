"""The training run around a model: ranks with and without GPUs, checkpoints that survive faults, exact resuming, a
monitor of the memory, and a line of progress.
"""

from .atomic_checkpoint_hook import AtomicCheckpointHook
from .data_error_hook import DataErrorHook
from .exact_resume_hook import ExactResumeHook
from .monitor import GRCMonitorHook
from .progress_hook import ProgressHook
from .stop_signal_hook import StopSignalHook

__all__ = [
    'AtomicCheckpointHook',
    'DataErrorHook',
    'ExactResumeHook',
    'GRCMonitorHook',
    'ProgressHook',
    'StopSignalHook',
]
