#!/usr/bin/env bash
# Submit a training to Slurm that continues over as many jobs as it needs:
#   [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SBATCH_ARGS=...] [STOP_BEFORE=300] \
#       tools/sbatch_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [OPTIONS OF train.py] [--dry-run]
#
# STOP_BEFORE seconds before the job's time limit (SBATCH_ARGS='--time=8:00:00') the ranks write a checkpoint after the
# current iteration and exit, and the job is requeued. Each start resumes from the last checkpoint in WORK_DIR. This also
# holds for a job that Slurm requeues itself (preemption, a failed node). A training that fails is not requeued.
# The log is WORK_DIR/slurm-JOBID.out. GPUS, TOOL and the others: as in tools/slurm_train.sh.
set -euo pipefail

# The job: Slurm runs a copy of this file, so it needs the folder of the tools as an argument.
if [[ ${1:-} == --job ]]; then
    folder=$2
    shift 2
    # shellcheck source=tools/launch.sh
    . "$folder/launch.sh"
    choose_tool train
    requeue_when_stopped srun --kill-on-bad-exit=1 "$PYTHON" -u "$TOOLS/$TOOL.py" "$@" --launcher slurm
fi

# shellcheck source=tools/launch.sh
. "$(dirname "$0")/launch.sh"
parse 4 "$@"
choose_tool train
export TOOL
start_sbatch "${ARGS[0]}" "${ARGS[1]}" "${ARGS[3]}" 'slurm-%j.out' -- \
    "$TOOLS/sbatch_train.sh" --job "$TOOLS" "${ARGS[2]}" --work-dir="${ARGS[3]}" --resume "${ARGS[@]:4}"
