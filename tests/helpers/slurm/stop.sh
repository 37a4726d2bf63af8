#!/usr/bin/env bash
# Stop what tests/helpers/slurm/start.sh started below FOLDER: jobs first, then each daemon by its own pid file.
#   tests/helpers/slurm/stop.sh FOLDER
set -uo pipefail
folder=${1:?usage: tests/helpers/slurm/stop.sh FOLDER}
export SLURM_CONF=$folder/slurm.conf

stop() { # stop NAME: only if the pid in its file is still a program of that name
    local pid exe
    [[ -s $folder/run/$1.pid ]] || return 0
    pid=$(< "$folder/run/$1.pid")
    exe=$(readlink "/proc/$pid/exe") && [[ ${exe##*/} == "$1"* ]] || return 0
    kill "$pid"
    for ((i = 0; i < 100; i++)); do
        [[ -e /proc/$pid/exe ]] || return 0
        sleep 0.1
    done
    echo "slurm: $1 ($pid) did not end in 10 s" >&2
    return 1
}

# Processes of jobs outlive slurmd.
if timeout 5 scontrol ping > /dev/null 2>&1; then
    squeue -h -o %A | xargs -r scancel
    for ((i = 0; i < 150; i++)); do
        [[ -z $(squeue -h) ]] && break
        sleep 0.1
    done
fi
code=0
for daemon in slurmd slurmctld munged; do stop "$daemon" || code=1; done
exit "$code"
