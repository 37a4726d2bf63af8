#!/usr/bin/env bash
# Test on several GPUs, or CPUs, with torchrun:
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [OPTIONS OF test.py] [--dry-run]
#
# GPUS, --dry-run and several machines: as in tools/dist_train.sh.
set -euo pipefail
# shellcheck source=tools/launch.sh
. "$(dirname "$0")/launch.sh"
parse 3 "$@"
start_torchrun "${ARGS[2]}" test "${ARGS[@]:0:2}" "${ARGS[@]:3}"
