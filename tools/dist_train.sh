#!/usr/bin/env bash
# Train on several GPUs, or CPUs, with torchrun:
#   tools/dist_train.sh CONFIG GPUS [OPTIONS OF train.py] [--dry-run]
#
# GPUS is the number of processes on this machine. Without a GPU they run on CPUs. --dry-run prints the command.
# For several machines, type the same on each, with NNODES (number of machines), NODE_RANK (which one, from 0),
# MASTER_ADDR (address of the first) and PORT (29500 by default). On one machine the default PORT is a free one.
# TOOL=pretrain starts pretrain.py instead of train.py.
set -euo pipefail
# shellcheck source=tools/launch.sh
. "$(dirname "$0")/launch.sh"
parse 2 "$@"
choose_tool train
start_torchrun "${ARGS[1]}" "$TOOL" "${ARGS[0]}" "${ARGS[@]:2}"
