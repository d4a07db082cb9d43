"""The words of each MPI's mpiexec for the same things."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launch.failures import CommandError

Flavour = Literal["openmpi", "mpich", "intel"]

_ANSWER_SECONDS = 60
# Looked for in this order: Intel MPI's text may name MPICH's process manager.
_SIGNS: tuple[tuple[str, Flavour], ...] = (
    ("Intel(R) MPI", "intel"),
    ("Open MPI", "openmpi"),
    ("OpenRTE", "openmpi"),
    ("open-mpi.org", "openmpi"),
    ("PRRTE", "openmpi"),
    ("HYDRA", "mpich"),
)


@dataclass(frozen=True)
class Start:
    """What mpiexec is to start."""

    nodes: int
    processes_per_node: int
    program: tuple[str, ...]
    """Program and arguments of each rank."""
    working_folder: Path
    """Absolute; where the ranks run."""
    variables: tuple[str, ...] = ()
    """Names of variables in mpiexec's own environment that all ranks get, under Open MPI no others
    on other machines. Their values are on no command line, where every user could read them."""
    hostfile: Path | None = None
    """In the flavour's own style; none leaves the machines to the scheduler's allocation, or is
    this machine."""
    network_interface: str | None = None
    extra_arguments: tuple[str, ...] = ()


def flavour_of(version: str) -> Flavour | None:
    """Recognise whose mpiexec it is by what it says of its version."""
    return next((flavour for sign, flavour in _SIGNS if sign in version), None)


def detect_flavour(mpiexec: Path) -> Flavour:
    """Ask an mpiexec whose it is.

    Raises:
        CommandError: If it cannot be started or is unknown.
    """
    try:
        answer = subprocess.run(
            [str(mpiexec), "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_ANSWER_SECONDS,
            check=False,
        ).stdout
    except subprocess.TimeoutExpired:
        raise CommandError(
            f"{mpiexec} --version says nothing in {_ANSWER_SECONDS} s; name another as `mpiexec` "
            "in the cluster's description"
        ) from None
    except OSError as error:
        raise CommandError(
            f"mpiexec: {mpiexec} cannot be started ({error.strerror}); name one that can in the "
            "cluster's description"
        ) from None
    flavour = flavour_of(answer)
    if flavour is None:
        said = " ".join(answer.split())[:80]
        raise CommandError(
            f"{mpiexec} is neither Open MPI's nor MPICH's nor Intel MPI's ({said!r}); say whose "
            "options it takes as `flavour` in the cluster's description"
        )
    return flavour


def mpiexec_arguments(flavour: Flavour, start: Start) -> list[str]:
    """Arguments of mpiexec."""
    ranks = str(start.nodes * start.processes_per_node)
    options = _openmpi(start) if flavour == "openmpi" else _hydra(start)
    return [*options, *start.extra_arguments, "-n", ranks, *start.program]


def hostfile_text(flavour: Flavour, hosts: Sequence[str], processes_per_node: int) -> str:
    """A file that names so many ranks of each host, as this mpiexec reads it."""
    form = "{host} slots={ranks}\n" if flavour == "openmpi" else "{host}:{ranks}\n"
    return "".join(form.format(host=host, ranks=processes_per_node) for host in hosts)


def _openmpi(start: Start) -> list[str]:
    ranks = start.processes_per_node
    words = ["--map-by", f"ppr:{ranks}:node", "--bind-to", "none"]
    if start.hostfile is not None:
        words += ["--hostfile", str(start.hostfile)]
    elif start.nodes == 1:
        # Without it this machine has as many places as cores.
        words += ["--host", f"localhost:{ranks}"]
    if start.network_interface is not None:
        words += ["--mca", "oob_tcp_if_include", start.network_interface]
        words += ["--mca", "btl_tcp_if_include", start.network_interface]
    for name in start.variables:
        words += ["-x", name]
    return [*words, "--wdir", str(start.working_folder)]


def _hydra(start: Start) -> list[str]:
    """MPICH's process manager, which Intel MPI has taken over with its options."""
    words = ["-ppn", str(start.processes_per_node)]
    if start.hostfile is not None:
        words += ["-f", str(start.hostfile)]
    if start.network_interface is not None:
        words += ["-iface", start.network_interface]
    # All variables, as is its default: of a list of names (-genvlist) MPICH 5.0.2 now and then
    # loses the last one on other machines.
    return [*words, "-genvall", "-wdir", str(start.working_folder)]
