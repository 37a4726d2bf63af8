#!/usr/bin/env bash
# Train on several GPUs, or CPUs, with torchrun:
#   tools/dist_train.sh CONFIG GPUS [OPTIONS OF train.py] [--dry-run]
#
# GPUS is the number of processes on this machine; without a GPU they run on CPUs. --dry-run prints the command.
# Several machines: type the same on each, with NNODES (how many), NODE_RANK (which one, from 0), MASTER_ADDR (address of
# the first) and PORT (29500 by default) set. On one machine a free port is found where PORT is not set.
set -euo pipefail
# shellcheck source=tools/launch.sh
. "$(dirname "$0")/launch.sh"
parse 2 "$@"
start_torchrun "${ARGS[1]}" train "${ARGS[0]}" "${ARGS[@]:2}"
