"""Runs: their configs, the checks before them, MMDetection's tools, checkpoints, and the benchmark."""

from mmgrc.env.versions import check_stack

# All of it needs MMDetection: what is wrong with that is said here, before an import fails.
check_stack()
