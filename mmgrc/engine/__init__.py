"""What runs around a model: ranks with and without GPUs, checkpoints that survive faults, and exact resuming."""

from .atomic_checkpoint_hook import AtomicCheckpointHook
from .exact_resume_hook import ExactResumeHook
from .stop_signal_hook import StopSignalHook

__all__ = ['AtomicCheckpointHook', 'ExactResumeHook', 'StopSignalHook']
