"""Which rank this process is, whoever started it: torchrun, DeepSpeed, srun, mpiexec, or nobody."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from pretrain.errors import RunError

# (rank, size, rank on this host), in the words of each launcher.
_LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "MPICH": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    "Slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
}


@dataclass(frozen=True)
class Ranks:
    """This process's place among all of the run."""

    rank: int
    """Of this process, from 0."""
    world_size: int
    """Number of processes."""
    local_rank: int
    """Of this process on its host: the number of its GPU."""
    launcher: str
    """Who started it."""


def find_ranks(environment: Mapping[str, str]) -> Ranks:
    """Read this process's rank from the variables its launcher set.

    Slurm's are looked at last: inside an allocation they are set for every program, also for
    torchrun and mpiexec. A step of ``srun`` is told apart by ``SLURM_STEP_ID``.

    Raises:
        RunError: If a variable is not a number, or the numbers contradict one another.
    """
    for launcher, names in _LAUNCHERS.items():
        rank_name, size_name, local_name = names
        if rank_name not in environment or size_name not in environment:
            continue
        if launcher == "Slurm" and "SLURM_STEP_ID" not in environment:
            continue
        try:
            rank, size = int(environment[rank_name]), int(environment[size_name])
            local_rank = int(environment.get(local_name, rank))
        except ValueError:
            raise RunError(
                f"{rank_name}={environment[rank_name]!r}, {size_name}={environment[size_name]!r}: "
                "not numbers; start the run with torchrun, srun or mpiexec"
            ) from None
        if not 0 <= rank < size:
            raise RunError(f"{rank_name}={rank} is not below {size_name}={size}; unset both")
        return Ranks(rank, size, local_rank, launcher)
    return Ranks(0, 1, 0, "none")


def export_rendezvous(ranks: Ranks, environment: dict[str, str] | os._Environ[str]) -> None:
    """Set the variables by which torch's processes find one another, where the launcher did not.

    Without ``MASTER_ADDR`` all processes are taken to be on this host: launchers that start more
    than one host set it.

    Raises:
        RunError: If several processes run and nobody said on which port they meet.
    """
    environment["RANK"] = str(ranks.rank)
    environment["WORLD_SIZE"] = str(ranks.world_size)
    environment["LOCAL_RANK"] = str(ranks.local_rank)
    environment.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" in environment:
        return
    if ranks.world_size > 1:
        raise RunError(
            f"{ranks.launcher} started {ranks.world_size} processes but MASTER_PORT is not set; "
            "set MASTER_ADDR and MASTER_PORT to a host and a free port all of them reach"
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        environment["MASTER_PORT"] = str(probe.getsockname()[1])
