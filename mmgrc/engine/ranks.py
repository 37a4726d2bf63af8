"""Ranks: the processes of a distributed run, each with one GPU, or all without."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, MutableMapping
from datetime import timedelta

import torch
import torch.distributed as dist

__all__ = [
    'LauncherError',
    'check_launcher',
    'count_ranks',
    'is_first_of_machine',
    'read_slurm_environment',
    'start_cpu_ranks',
]

# Below Linux's ephemeral ports (from 32768), which other programs use.
_FIRST_PORT, _PORTS = 20000, 12000
_NEEDED = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID', 'SLURM_NODELIST', 'SLURM_JOB_ID'),
}
_REMEDIES = {
    'pytorch': 'tools/dist_train.sh CONFIG GPUS',
    'slurm': 'tools/slurm_train.sh PARTITION JOB_NAME CONFIG ...',
}


class LauncherError(RuntimeError):
    """This process was not started by the given launcher, has no GPU of its own, or does not know the first node."""


def check_launcher(launcher: str, environ: Mapping[str, str] = os.environ) -> None:
    """Check that the launcher has told this process its rank.

    Args:
        launcher: ``'pytorch'`` or ``'slurm'``.
        environ: The environment variables.

    Raises:
        LauncherError: A variable is missing, or there are fewer GPUs than ranks on this machine.
    """
    missing = [name for name in _NEEDED[launcher] if name not in environ]
    if missing:
        raise LauncherError(
            f'--launcher {launcher}: {", ".join(missing)} not set: this process was not started by it. Type: '
            f'{_REMEDIES[launcher]} (or leave --launcher out for one process)'
        )
    local_rank = int(environ[_NEEDED[launcher][2]])
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus and local_rank >= gpus:
        raise LauncherError(
            f'there is no GPU for local rank {local_rank}: this process sees {gpus}. Start at most {gpus} on a '
            "machine, or set CUDA_VISIBLE_DEVICES='' to run all of them on CPUs"
        )


def count_ranks(launcher: str, environ: Mapping[str, str] = os.environ) -> int:
    """Number of ranks that a launcher has started, before they connect. 1 for ``'none'``."""
    return int(environ[_NEEDED[launcher][1]]) if launcher in _NEEDED else 1


def is_first_of_machine(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this is the one process of its machine that does the common work for all of them."""
    return all(environ.get(name, '0') == '0' for name in ('LOCAL_RANK', 'SLURM_LOCALID'))


def read_slurm_environment(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set torch's variables for ranks from Slurm's.

    ``MASTER_ADDR`` and ``MASTER_PORT`` are kept if they are set. The port is computed from the ids of job and step, so
    that two jobs on a host do not collide. On one node the address is the loopback address, since the name of a node
    may not resolve.

    Raises:
        LauncherError: ``MASTER_ADDR`` is not set, and Slurm's ``scontrol`` does not name the nodes.
    """
    environ['RANK'] = environ['SLURM_PROCID']
    environ['WORLD_SIZE'] = environ['SLURM_NTASKS']
    environ['LOCAL_RANK'] = environ['SLURM_LOCALID']
    step = int(environ.get('SLURM_STEP_ID', 0))
    environ.setdefault('MASTER_PORT', str(_FIRST_PORT + (int(environ['SLURM_JOB_ID']) + 101 * step) % _PORTS))
    if 'MASTER_ADDR' not in environ:
        nodes = environ.get('SLURM_STEP_NODELIST', environ['SLURM_NODELIST'])
        command = ['scontrol', 'show', 'hostnames', nodes]
        try:
            names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        except (OSError, subprocess.CalledProcessError) as error:
            # Containers often lack it.
            raise LauncherError(
                f'the first of the nodes {nodes} is not known: {" ".join(command)} fails ({error}). Set MASTER_ADDR to '
                'its name or address; on one node: 127.0.0.1'
            ) from error
        environ['MASTER_ADDR'] = '127.0.0.1' if len(names) == 1 else names[0]


def start_cpu_ranks(config: Mapping) -> dict:
    """Create a gloo process group for ranks without a GPU, from torch's environment variables.

    MMEngine's own initialisation needs CUDA whatever the backend. It is skipped if a process group exists already.

    Args:
        config: The whole config. Of ``env_cfg.dist_cfg`` only ``timeout`` (in seconds) is used.

    Returns:
        Entries to merge into the config: a model wrapper without device ids.
    """
    options = (config.get('env_cfg') or {}).get('dist_cfg') or {}
    timeout = {'timeout': timedelta(seconds=options['timeout'])} if options.get('timeout') else {}
    dist.init_process_group('gloo', **timeout)
    wrapper = {
        'type': 'MMDistributedDataParallel',
        'broadcast_buffers': False,
        'find_unused_parameters': config.get('find_unused_parameters', False),
        **(config.get('model_wrapper_cfg') or {}),
        # The key must exist. Otherwise MMEngine fills in the local rank.
        'device_ids': None,
    }
    return {f'model_wrapper_cfg.{name}': value for name, value in wrapper.items()}
