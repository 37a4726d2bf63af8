"""Checks before training and testing. They validate the inputs and report one clear error that says what to do."""

from .datasets import CocoFiles, check_datasets, read_datasets
from .evaluators import check_evaluator, check_watched_metrics, require_metrics
from .image_folders import check_image_folders, read_image_folders
from .models import (
    check_checkpoint,
    check_parts,
    check_resume,
    check_teacher,
    check_weights,
)
from .optimizers import check_optimizer
from .outputs import check_output_file, check_work_dir
from .schedule import check_batch_size, check_schedule

__all__ = [
    'CocoFiles',
    'check_batch_size',
    'check_checkpoint',
    'check_datasets',
    'check_evaluator',
    'check_image_folders',
    'check_optimizer',
    'check_output_file',
    'check_parts',
    'check_resume',
    'check_schedule',
    'check_teacher',
    'check_watched_metrics',
    'check_weights',
    'check_work_dir',
    'read_datasets',
    'read_image_folders',
    'require_metrics',
]
