#!/usr/bin/env bash
# Start a Slurm of one machine for tests: munged, slurmctld and slurmd, without systemd and without root's files.
#   tests/helpers/slurm/start.sh FOLDER [CPUS]
#
# All state is below FOLDER, which everyone must be able to read, up to the root (munge requires it). The daemons listen
# only on 127.0.0.1. Set SLURM_CONF=FOLDER/slurm.conf afterwards. tests/helpers/slurm/stop.sh FOLDER stops it.
set -euo pipefail
folder=${1:?usage: tests/helpers/slurm/start.sh FOLDER [CPUS]}
cpus=${2:-2}
host=$(hostname -s)
# Free ports, since another Slurm on the machine may use the usual ones.
read -ra ports < <(python3 - << 'PY'
import socket

sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(2)]
print(*(s.getsockname()[1] for s in sockets))
PY
)

wait_for() { # wait_for SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until timeout 5 "$@" > /dev/null 2>&1; do
        if ((SECONDS >= end)); then
            echo "slurm: timed out: $*" >&2
            return 1
        fi
        sleep 0.1
    done
}

umask 022
mkdir -p "$folder"/{munge,state,spool,log,run}
(umask 077 && head -c 128 /dev/urandom > "$folder/munge/munge.key")
munged --key-file="$folder/munge/munge.key" --socket="$folder/munge/munge.socket" --num-threads=2 \
    --pid-file="$folder/run/munged.pid" --log-file="$folder/munge/munged.log" --seed-file="$folder/munge/munged.seed"
wait_for 5 munge -S "$folder/munge/munge.socket" -n -o /dev/null

user=$(id -un)
# The number of CPUs is declared, not detected, so two tasks also run on one core. A requeued job may start only when its
# credential has expired (cred_expire; 2 minutes by default).
cat > "$folder/slurm.conf" << CONF
ClusterName=mmgrc_test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/munge/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,batch_sched_delay=0
ReturnToService=2
MailProg=/bin/true
KillWait=5
NodeName=$host NodeAddr=127.0.0.1 Port=${ports[1]} CPUs=$cpus Boards=1 SocketsPerBoard=1 CoresPerSocket=$cpus ThreadsPerCore=1 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=01:00:00 State=UP
CONF
export SLURM_CONF=$folder/slurm.conf

slurmctld -i
wait_for 15 scontrol ping
slurmd -N "$host"
# shellcheck disable=SC2016  # the inner shell expands it
wait_for 30 bash -c '[[ -n $(sinfo -h -N -t idle -o %N) ]]'
