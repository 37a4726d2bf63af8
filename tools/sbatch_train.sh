#!/usr/bin/env bash
# Submit a training to Slurm that continues over as many jobs as it needs:
#   [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SBATCH_ARGS=...] [STOP_BEFORE=300] \
#       tools/sbatch_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [OPTIONS OF train.py] [--dry-run]
#
# STOP_BEFORE seconds before the job's time limit (SBATCH_ARGS='--time=8:00:00') the ranks write a checkpoint after the
# current iteration and exit, and the job is requeued. Each start resumes from the last checkpoint in WORK_DIR. This also
# holds for a job that Slurm requeues itself (preemption, a failed node). A training that fails is not requeued.
# The log is WORK_DIR/slurm-JOBID.out. GPUS and the others: as in tools/slurm_train.sh.
set -euo pipefail

# The job: Slurm runs a copy of this file, so it needs the folder of the tools as an argument.
if [[ ${1:-} == --job ]]; then
    folder=$2 stopping=false
    shift 2
    srun --kill-on-bad-exit=1 "${PYTHON:-python}" -u "$folder/train.py" "$@" --launcher slurm &
    # srun forwards the signal to all ranks.
    trap 'stopping=true; kill -USR1 $!' USR1
    code=0
    wait $! || code=$?
    # The signal ended that wait, while srun continues.
    while kill -0 $! 2> /dev/null; do
        code=0
        wait $! || code=$?
    done
    if $stopping && ((code)); then
        echo "sbatch_train: the job is stopped before its time limit and requeued"
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$code"
fi

# shellcheck source=tools/launch.sh
. "$(dirname "$0")/launch.sh"
parse 4 "$@"
whole STOP_BEFORE "${STOP_BEFORE:-300}" 1
slurm_resources
read -ra extra <<< "${SBATCH_ARGS:-}"
work_dir=${ARGS[3]}
# sbatch fails silently if the folder of the log does not exist.
$DRY_RUN || mkdir -p "$work_dir"
start sbatch --partition="${ARGS[0]}" --job-name="${ARGS[1]}" "${RESOURCES[@]}" --requeue --open-mode=append \
    --signal="B:USR1@${STOP_BEFORE:-300}" --output="$work_dir/slurm-%j.out" "${extra[@]}" \
    "$TOOLS/sbatch_train.sh" --job "$TOOLS" "${ARGS[2]}" --work-dir="$work_dir" --resume "${ARGS[@]:4}"
