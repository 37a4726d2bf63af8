#!/usr/bin/env bash
# Train under Slurm, and wait for the end:
#   [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS=...] \
#       tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [OPTIONS OF train.py] [--dry-run]
#
# GPUS is the number of processes, one per GPU. For nodes without a GPU set GPUS_PER_NODE=0: no GPU is requested, and GPUS
# processes run on CPUs. The port is computed from the job's id; MASTER_PORT sets another. --dry-run prints the command.
# TOOL=pretrain starts pretrain.py instead of train.py.
set -euo pipefail
# shellcheck source=tools/launch.sh
. "$(dirname "$0")/launch.sh"
parse 4 "$@"
choose_tool train
start_srun "${ARGS[@]:0:2}" "$TOOL" "${ARGS[2]}" --work-dir="${ARGS[3]}" "${ARGS[@]:4}"
