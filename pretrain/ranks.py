"""Which rank this process is, whoever started it: torchrun, DeepSpeed, srun, mpiexec, or nobody."""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
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
# One of these tells that some launcher of MPI started this process, whatever its other words are:
# the protocols PMI and PMIx, Cray's ALPS and PALS, MVAPICH, IBM's jsrun.
_MPI_TRACES = (
    *("PMI_FD", "PMI_PORT", "PMI_RANK", "PMIX_RANK", "ALPS_APP_PE", "PALS_RANKID"),
    *("MV2_COMM_WORLD_RANK", "JSM_NAMESPACE_RANK"),
)
_BY_MPI = ("Open MPI", "MPICH", "MPI")
# The ranks of a large job do not start at the same time.
_MEETING_SECONDS = 600.0
_REMEDY = (
    "start the run by the mpiexec of mpi4py's MPI (the one beside this Python), or set "
    "MPI4PY_LIBMPI to the libmpi.so of this one"
)


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


@dataclass(frozen=True)
class Meeting:
    """What the ranks of an MPI job have agreed on."""

    ranks: Ranks
    host: str | None
    """An address of rank 0 that all hosts reach; none where there is none."""
    port: int
    """A port that is free on rank 0's host."""
    offered: tuple[str, ...]
    """Addresses of rank 0 that were tried."""
    library: str
    """MPI library that was used."""


@functools.cache
def meet_over_mpi() -> Meeting:
    """Ask MPI for this process's place, and agree on where the ranks meet.

    All ranks must call it, and a launcher lets a rank do so only once: hence the cache. See
    :mod:`pretrain.mpi_meeting` for why it is another process that speaks with MPI.

    Raises:
        RunError: If mpi4py finds no MPI, or MPI does not work.
    """
    try:
        # The launcher's protocol runs over descriptors that it has left open for us.
        done = subprocess.run(
            [sys.executable, "-m", "pretrain.mpi_meeting"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_MEETING_SECONDS,
            close_fds=False,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RunError(
            f"the ranks did not find one another over MPI within {_MEETING_SECONDS:.0f} s; "
            "look whether all of them were started"
        ) from None
    if done.returncode != 0:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip(" -=")]
        reason = said[-1] if said else f"exit code {done.returncode}"
        raise RunError(f"MPI does not work here ({reason}); {_REMEDY}")
    told = json.loads(done.stdout.splitlines()[-1])
    return Meeting(
        ranks=Ranks(told["rank"], told["size"], told["local_rank"], "MPI"),
        host=told["host"],
        port=told["port"],
        offered=tuple(told["offered"]),
        library=told["library"],
    )


def find_ranks(environment: Mapping[str, str], *, ask_mpi: bool = True) -> Ranks:
    """Read this process's rank from the variables its launcher set, or ask MPI.

    Slurm's are looked at last: inside an allocation they are set for every program, also for
    torchrun and mpiexec. A step of ``srun`` is told apart by ``SLURM_STEP_ID``.

    Args:
        environment: The variables.
        ask_mpi: Ask MPI where a launcher of MPI has started this process and its variables do not
            tell. A program that uses MPI itself must not ask a second time.

    Raises:
        RunError: If a variable is not a number, the numbers contradict one another, or MPI does
            not work.
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
        ranks = Ranks(rank, size, local_rank, launcher)
        if launcher not in _BY_MPI or local_name in environment:
            return ranks
        if "SLURM_STEP_ID" in environment and "SLURM_LOCALID" in environment:
            # srun speaks PMI as well, but has its own word for the place on a host.
            return Ranks(rank, size, int(environment["SLURM_LOCALID"]), launcher)
        return _met(ranks).ranks if ask_mpi and size > 1 else ranks
    if ask_mpi and any(name in environment for name in _MPI_TRACES):
        return meet_over_mpi().ranks
    return Ranks(0, 1, 0, "none")


def export_rendezvous(ranks: Ranks, environment: dict[str, str] | os._Environ[str]) -> None:
    """Set the variables by which torch's processes find one another, where the launcher did not.

    Under MPI the ranks agree on ``MASTER_ADDR`` and ``MASTER_PORT`` themselves. Otherwise all
    processes without ``MASTER_ADDR`` are taken to be on this host: launchers that start more than
    one host set it.

    Raises:
        RunError: If several processes run and they do not learn where they meet.
    """
    environment["RANK"] = str(ranks.rank)
    environment["WORLD_SIZE"] = str(ranks.world_size)
    environment["LOCAL_RANK"] = str(ranks.local_rank)
    agree_on_rendezvous(ranks, environment)


def agree_on_rendezvous(ranks: Ranks, environment: dict[str, str] | os._Environ[str]) -> None:
    """Set ``MASTER_ADDR`` and ``MASTER_PORT`` where they are missing.

    Raises:
        RunError: If several processes run and they do not learn where they meet.
    """
    if "MASTER_PORT" in environment:
        environment.setdefault("MASTER_ADDR", "127.0.0.1")
        return
    if ranks.world_size == 1:
        environment.setdefault("MASTER_ADDR", "127.0.0.1")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            environment["MASTER_PORT"] = str(probe.getsockname()[1])
        return
    remedy = "set MASTER_ADDR and MASTER_PORT to a host and a free port all of them reach"
    if ranks.launcher not in _BY_MPI:
        raise RunError(
            f"{ranks.launcher} started {ranks.world_size} processes but MASTER_PORT is not set; "
            f"{remedy}"
        )
    meeting = _met(ranks)
    if "MASTER_ADDR" not in environment:
        if meeting.host is None:
            tried = ", ".join(meeting.offered) or "no network interface that is up"
            raise RunError(f"not every host reaches rank 0's ({tried}); {remedy}")
        environment["MASTER_ADDR"] = meeting.host
    environment["MASTER_PORT"] = str(meeting.port)


def _met(ranks: Ranks) -> Meeting:
    """The meeting, where MPI sees the same job as the launcher's variables tell of.

    Raises:
        RunError: If it does not: mpi4py then uses another MPI than the launcher.
    """
    meeting = meet_over_mpi()
    found = meeting.ranks
    if (found.rank, found.world_size) != (ranks.rank, ranks.world_size):
        raise RunError(
            f"{ranks.launcher} started rank {ranks.rank} of {ranks.world_size}, but mpi4py's MPI "
            f"({meeting.library}) sees rank {found.rank} of {found.world_size}; {_REMEDY}"
        )
    return meeting
