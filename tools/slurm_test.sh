#!/usr/bin/env bash
# Test under Slurm, and wait for the end:
#   [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS=...] \
#       tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [OPTIONS OF test.py] [--dry-run]
#
# The variables and --dry-run: as in tools/slurm_train.sh. TOOL=pretrain_test starts pretrain_test.py instead of test.py.
set -euo pipefail
# shellcheck source=tools/launch.sh
. "$(dirname "$0")/launch.sh"
parse 4 "$@"
choose_tool test
start_srun "${ARGS[@]:0:2}" "$TOOL" "${ARGS[@]:2:2}" "${ARGS[@]:4}"
