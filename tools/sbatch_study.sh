#!/usr/bin/env bash
# Submit runs of a study to Slurm as a job array, one run per task. `tools/study.py TABLE --slurm PARTITION` calls it:
#   [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SBATCH_ARGS=...] [STOP_BEFORE=300] \
#       tools/sbatch_study.sh PARTITION JOB_NAME INDICES WORK_DIR TABLE [--dry-run]
#
# GPUS and the other variables apply to one run, as in tools/slurm_train.sh. A run that needs more than the time limit
# writes a checkpoint, is requeued and resumes, as in tools/sbatch_train.sh. The logs are WORK_DIR/slurm-JOBID_INDEX.out.
set -euo pipefail

# The job: Slurm runs a copy of this file, so it needs the folder of the tools as an argument.
if [[ ${1:-} == --job ]]; then
    # shellcheck source=tools/launch.sh
    . "$2/launch.sh"
    requeue_when_stopped "$PYTHON" -u "$TOOLS/study.py" "$4" --work-dir "$3" --run "$SLURM_ARRAY_TASK_ID"
fi

# shellcheck source=tools/launch.sh
. "$(dirname "$0")/launch.sh"
parse 5 "$@"
start_sbatch "${ARGS[0]}" "${ARGS[1]}" "${ARGS[3]}" 'slurm-%A_%a.out' --array="${ARGS[2]}" -- \
    "$TOOLS/sbatch_study.sh" --job "$TOOLS" "${ARGS[3]}" "${ARGS[4]}"
