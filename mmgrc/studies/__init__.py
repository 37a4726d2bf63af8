"""Studies: train several arms over several seeds, and compare them."""

from .run import check_gpus, run_one, run_study
from .slurm import submit
from .summary import write_summary
from .table import Arm, Run, Study, read_table

__all__ = ['Arm', 'Run', 'Study', 'check_gpus', 'read_table', 'run_one', 'run_study', 'submit', 'write_summary']
