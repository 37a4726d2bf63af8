#!/usr/bin/env bash
# Test on several GPUs, or CPUs, with torchrun:
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [OPTIONS OF test.py] [--dry-run]
#
# GPUS, --dry-run and several machines: as in tools/dist_train.sh. TOOL=pretrain_test starts pretrain_test.py instead of
# test.py.
set -euo pipefail
# shellcheck source=tools/launch.sh
. "$(dirname "$0")/launch.sh"
parse 3 "$@"
choose_tool test
start_torchrun "${ARGS[2]}" "$TOOL" "${ARGS[@]:0:2}" "${ARGS[@]:3}"
