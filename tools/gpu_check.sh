#!/usr/bin/env bash
# Check mmgrc on a machine with a CUDA GPU, unattended:
#   [VENV=.venv] [WHEELS=FOLDER] tools/gpu_check.sh OUT [STEP...] [--python PYTHON] [--dry-run]
#
# The steps, in this order; without a STEP, all of them, within 20 minutes:
#   setup      make env, the installation; WHEELS: from the wheels in this folder, without a network
#   check_env  what works on this machine
#   tests      the tests that need a GPU
#   demo       the generated data set, the demo's training and its evaluation
#   benchmark  time and memory of PVT-Tiny, PVT-Small and Swin-Tiny with a memory, against stock and without it
# --python uses this Python as it is, and leaves out setup. --dry-run prints the commands.
# The output of each step goes to OUT/STEP.log, the results to OUT too, and the exit codes to OUT/summary.txt. A step that
# fails does not stop the next ones. The exit code is 1 if one failed.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=tools/launch.sh
. tools/launch.sh

STEPS=(setup check_env tests demo benchmark)
# Seconds after which a step is stopped. They add up to 20 minutes.
declare -A LIMITS=([setup]=300 [check_env]=60 [tests]=360 [demo]=180 [benchmark]=300)
CONFIGS=(configs/mask_rcnn_grc_pvt.py configs/mask_rcnn_grc_pvt_small.py configs/mask_rcnn_grc_swin.py)

fail() {
    echo "gpu_check: $1" >&2
    exit 1
}

chosen=() given='' previous=''
parse 1 "$@"
for arg in "${ARGS[@]:1}"; do
    if [[ $previous == --python ]]; then
        given=$arg
    elif [[ $arg != --python ]]; then
        [[ " ${STEPS[*]} " == *" $arg "* ]] || usage "gpu_check.sh: step $arg: the steps are ${STEPS[*]}" >&2
        chosen+=("$arg")
    fi
    previous=$arg
done
[[ $previous != --python ]] || usage 'gpu_check.sh: --python needs the path of a Python' >&2
((${#chosen[@]})) || chosen=("${STEPS[@]}")
out=$(realpath -m "${ARGS[0]}")
venv=${VENV:-.venv}
python=${given:-$venv/bin/python}
data=$out/shapes config=configs/shapes/mask_rcnn_grc_pvt.py

# commands STEP: print its commands, a line each.
commands() {
    case $1 in
        setup) printf '%q ' make env "VENV=$venv" && echo ;;
        check_env) printf '%q ' "$python" tools/check_env.py && echo ;;
        tests) printf '%q ' "$python" -m pytest tests/gpu -n0 -v "--junitxml=$out/tests.xml" && echo ;;
        demo)
            printf '%q ' "$python" tools/make_shapes.py "$data" && echo
            printf '%q ' "$python" tools/train.py "$config" --work-dir "$out/demo" && echo
            printf '%q ' "$python" tools/test.py "$config" "$out/demo/epoch_5.pth" --work-dir "$out/demo/test" && echo
            ;;
        benchmark)
            printf '%q ' "$python" tools/benchmark.py --config "${CONFIGS[@]}" --against stock no-memory --mode eval train \
                --dtype fp32 fp16 bf16 --batch 2 --size 800 1344 --device cuda --runs 10 \
                --json "$out/benchmark.json" --markdown "$out/benchmark.md" && echo
            ;;
    esac
}

if $DRY_RUN; then
    for step in "${chosen[@]}"; do
        [[ $step == setup && -n $given ]] || commands "$step"
    done
    exit
fi

sees_gpu() {
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null
}

if [[ -n $given || -x $python ]]; then
    sees_gpu || fail "there is no CUDA GPU that the torch of $python can use"
else
    nvidia-smi -L > /dev/null 2>&1 || fail 'there is no CUDA GPU: nvidia-smi finds none'
fi
mkdir -p "$out"
if [[ -n ${WHEELS:-} ]]; then
    PIP_FIND_LINKS=$(realpath "$WHEELS")
    export PIP_FIND_LINKS PIP_NO_INDEX=1
fi
export SHAPES_ROOT=$data PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

failed=0
: > "$out/summary.txt"
for step in "${chosen[@]}"; do
    [[ $step == setup && -n $given ]] && continue
    code=0 start=$SECONDS
    echo "gpu_check: $step, see $out/$step.log"
    timeout --kill-after=30 "${LIMITS[$step]}" bash -exc "$(commands "$step")" > "$out/$step.log" 2>&1 || code=$?
    ((code == 0)) || failed=1
    printf '%-9s exit code %3d after %4d s%s\n' "$step" "$code" $((SECONDS - start)) \
        "$( ((code != 124)) || echo ", stopped after its limit")" >> "$out/summary.txt"
    if [[ $step == setup ]] && ! sees_gpu; then
        fail "there is no CUDA GPU that the torch of $python can use; see $out/setup.log"
    fi
done
cat "$out/summary.txt"
exit $failed
