"""Finds an mpiexec whose ranks really see one another."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# One line for each world: ranks that meet are one world, whose first rank speaks for it.
_PROBE = """
from mpi4py import MPI
world = MPI.COMM_WORLD
names = world.gather(MPI.Get_library_version())
if names:
    print(f"world of {world.Get_size()}: {' '.join(names[0].splitlines()[0].split())}")
"""
_PROBE_SECONDS = 60


@dataclass(frozen=True)
class Mpi:
    """What MPI can be used here.

    Attributes:
        mpiexec: The program that starts ranks; None where there is none.
        library: Name of the MPI library that mpi4py uses; "" where it uses none.
        problem: Why several ranks cannot be started, with the remedy; "" where they can.
    """

    mpiexec: Path | None
    library: str
    problem: str


def find_mpiexec() -> Path | None:
    """Finds mpiexec: this environment's first, since mpi4py looks there first as well."""
    beside = Path(sys.executable).parent / "mpiexec"
    if beside.exists():
        return beside
    found = shutil.which("mpiexec") or shutil.which("mpirun")
    return None if found is None else Path(found)


def mpi_environment() -> dict[str, str]:
    """Our environment, fit for mpiexec: Open MPI refuses root, a container's only user, unasked."""
    environment = dict(os.environ)
    if os.geteuid() == 0:
        environment.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
        environment.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    return environment


def examine_mpi(processes: int = 2) -> Mpi:
    """Starts ``processes`` ranks and looks whether they are one world.

    An mpiexec of another MPI than mpi4py's starts as many worlds of one rank each, all of which
    would write the same files.
    """
    mpiexec = find_mpiexec()
    if mpiexec is None:
        return Mpi(None, "", 'no mpiexec found: pip install ".[mpi]" brings one')
    command = [str(mpiexec), "-n", str(processes), sys.executable, "-c", _PROBE]
    try:
        probe = subprocess.run(
            command,
            env=mpi_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Mpi(mpiexec, "", f"{mpiexec} did not start {processes} ranks in {_PROBE_SECONDS} s")
    except OSError as error:
        return Mpi(mpiexec, "", f"{mpiexec} cannot be started: {error.strerror}")
    return _judge(mpiexec, processes, probe.returncode, probe.stdout, probe.stderr)


def _judge(mpiexec: Path, processes: int, exit_code: int, output: str, errors: str) -> Mpi:
    """Reads what the ranks of the probe printed."""
    worlds = re.findall(r"world of (\d+): (.*)", output)
    library = worlds[0][1] if worlds else ""
    if exit_code != 0 or not worlds:
        said = [line.strip() for line in errors.splitlines() if line.strip()]
        reason = said[-1] if said else f"exit code {exit_code}"
        return Mpi(mpiexec, library, f"{mpiexec} -n {processes} fails: {reason}")
    if [size for size, _ in worlds] != [str(processes)]:
        return Mpi(
            mpiexec,
            library,
            f"{mpiexec} belongs to another MPI than mpi4py's ({library}): "
            'keep one of them, or pip install ".[mpi]"',
        )
    return Mpi(mpiexec, library, "")
