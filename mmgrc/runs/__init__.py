"""Runs: their configs, the checks before them, MMDetection's tools, checkpoints, and the benchmark."""

from mmgrc.env.versions import check_stack

# All of this needs MMDetection. Problems with it are reported here, before an import fails.
check_stack()
