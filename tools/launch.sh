# Functions that the launchers in this folder share. They source this file.
# shellcheck shell=bash
# shellcheck disable=SC2034  # DRY_RUN, TOOL, TOOLS and ARGS are read by the scripts that source this file.

TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHON=${PYTHON:-python}

# parse MINIMUM "$@": store the arguments without --dry-run in ARGS. If there are too few, print the header of the script.
parse() {
    local minimum=$1 arg
    shift
    DRY_RUN=false ARGS=()
    for arg in "$@"; do
        case $arg in
            --dry-run) DRY_RUN=true ;;
            -h | --help) usage ;;
            *) ARGS+=("$arg") ;;
        esac
    done
    if ((${#ARGS[@]} < minimum)); then
        usage "$(basename "$0"): $minimum arguments are needed, ${#ARGS[@]} were given" >&2
    fi
}

# usage [MESSAGE]: print the message and the header of the running script, and exit. With a message, the exit code is 2.
usage() {
    local message=${1:-}
    [[ -z $message ]] || printf '%s\n\n' "$message"
    awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
    exit $((${#message} ? 2 : 0))
}

# whole NAME VALUE LEAST: exit with a message unless VALUE is a whole number of at least LEAST.
whole() {
    if [[ ! $2 =~ ^[0-9]+$ ]] || (($2 < $3)); then
        usage "$1=$2: give a whole number of at least $3" >&2
    fi
}

# choose_tool DEFAULT: set TOOL, the tool that is started, unless the environment does.
choose_tool() {
    TOOL=${TOOL:-$1}
    [[ -f $TOOLS/$TOOL.py ]] || usage "TOOL=$TOOL: there is no $TOOLS/$TOOL.py" >&2
}

# start COMMAND...: replace this shell with the command, or print it with --dry-run.
start() {
    if $DRY_RUN; then
        printf '%q ' "$@"
        echo
    else
        exec "$@"
    fi
}

# start_torchrun GPUS TOOL ARGUMENT...
start_torchrun() {
    local gpus=$1 tool=$2 rendezvous
    shift 2
    whole GPUS "$gpus" 1
    if [[ -z ${PORT:-} && ${NNODES:-1} == 1 ]]; then
        # A free port, so that two runs on a machine do not collide.
        rendezvous=(--rdzv-backend=c10d --rdzv-endpoint=localhost:0 --local-addr=127.0.0.1)
    else
        rendezvous=(--node_rank="${NODE_RANK:-0}" --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}")
    fi
    start "$PYTHON" -m torch.distributed.run --nnodes="${NNODES:-1}" --nproc_per_node="$gpus" "${rendezvous[@]}" \
        "$TOOLS/$tool.py" "$@" --launcher pytorch
}

# slurm_resources: set RESOURCES, the options of srun and sbatch, from GPUS, GPUS_PER_NODE and CPUS_PER_TASK.
slurm_resources() {
    local gpus=${GPUS:-8} per_node
    whole GPUS "$gpus" 1
    per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
    whole GPUS_PER_NODE "$per_node" 0
    whole CPUS_PER_TASK "${CPUS_PER_TASK:-5}" 1
    RESOURCES=(--ntasks="$gpus" --cpus-per-task="${CPUS_PER_TASK:-5}")
    if ((per_node > 0)); then
        RESOURCES+=(--gres="gpu:$per_node" --ntasks-per-node="$per_node")
    fi
}

# start_srun PARTITION JOB_NAME TOOL ARGUMENT...
start_srun() {
    local partition=$1 name=$2 tool=$3 extra
    shift 3
    slurm_resources
    read -ra extra <<< "${SRUN_ARGS:-}"
    start srun --partition="$partition" --job-name="$name" "${RESOURCES[@]}" --kill-on-bad-exit=1 "${extra[@]}" \
        "$PYTHON" -u "$TOOLS/$tool.py" "$@" --launcher slurm
}

# start_sbatch PARTITION JOB_NAME FOLDER LOG [OPTION...] -- SCRIPT ARGUMENT...: submit a job that may be requeued. Slurm
# signals it before its time limit. The log is written to the folder.
start_sbatch() {
    local partition=$1 name=$2 folder=$3 log=$4 options=() extra
    shift 4
    while [[ $1 != -- ]]; do
        options+=("$1")
        shift
    done
    shift
    whole STOP_BEFORE "${STOP_BEFORE:-300}" 1
    slurm_resources
    read -ra extra <<< "${SBATCH_ARGS:-}"
    # sbatch fails without a message if the folder of the log is missing.
    $DRY_RUN || mkdir -p "$folder"
    start sbatch --partition="$partition" --job-name="$name" "${RESOURCES[@]}" --requeue --open-mode=append \
        --signal="B:USR1@${STOP_BEFORE:-300}" --output="$folder/$log" "${options[@]}" "${extra[@]}" "$@"
}

# requeue_when_stopped COMMAND...: inside a job, run the command and exit with its exit code. The command gets the signal
# that Slurm sends before the time limit. If it then ends with an error, the job is requeued.
requeue_when_stopped() {
    local code=0 stopping=false
    # Since Slurm 22.05, srun does not take it from the job, and would give each rank one CPU.
    [[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
    "$@" &
    # srun forwards the signal to all ranks.
    trap 'stopping=true; kill -USR1 $!' USR1
    wait $! || code=$?
    # The trap ended that wait, not the command.
    while kill -0 $! 2> /dev/null; do
        code=0
        wait $! || code=$?
    done
    if $stopping && ((code)); then
        echo "slurm: the job is stopped before its time limit and requeued"
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$code"
}
