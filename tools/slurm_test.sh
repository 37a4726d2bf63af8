#!/usr/bin/env bash
# Test under Slurm, and wait for the end:
#   [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS=...] \
#       tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [OPTIONS OF test.py] [--dry-run]
#
# The variables and --dry-run: as in tools/slurm_train.sh.
set -euo pipefail
# shellcheck source=tools/launch.sh
. "$(dirname "$0")/launch.sh"
parse 4 "$@"
start_srun "${ARGS[@]:0:2}" test "${ARGS[@]:2:2}" "${ARGS[@]:4}"
