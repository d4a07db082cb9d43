"""Finds an mpiexec whose ranks really see one another."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# One line for each world: ranks that meet are one world, whose first rank speaks for it.
PROBE = """
import os
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
library = " ".join(MPI.Get_library_version().splitlines()[0].split())
os.write(1, f"library: {library}\\n".encode())
MPI.Init()
if MPI.COMM_WORLD.Get_rank() == 0:
    os.write(1, f"world of {MPI.COMM_WORLD.Get_size()}\\n".encode())
MPI.Finalize()
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
    command = [str(mpiexec), "-n", str(processes), sys.executable, "-c", PROBE]
    return examine_start(mpiexec, command, mpi_environment(), processes)


def examine_start(
    mpiexec: Path, command: Sequence[str], environment: Mapping[str, str], processes: int
) -> Mpi:
    """Starts ranks of ``PROBE`` and looks whether they are one world.

    Args:
        mpiexec: The program that starts them.
        command: It and all its arguments.
        environment: Its whole environment.
        processes: Number of ranks.
    """
    try:
        probe = subprocess.run(
            command,
            env=dict(environment),
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
    worlds = re.findall(r"^world of (\d+)$", output, re.MULTILINE)
    libraries = re.findall(r"^library: (.*)$", output, re.MULTILINE)
    library = libraries[0] if libraries else ""
    if exit_code != 0 or not worlds:
        # Open MPI draws lines around what it says.
        said = [line.strip() for line in errors.splitlines() if line.strip(" -=")]
        reason = said[-1] if said else f"exit code {exit_code}"
        return Mpi(mpiexec, library, f"{mpiexec} -n {processes} fails: {reason}")
    if worlds != [str(processes)]:
        return Mpi(
            mpiexec,
            library,
            f"{mpiexec} belongs to another MPI than mpi4py's ({library}): "
            'keep one of them, or pip install ".[mpi]"',
        )
    return Mpi(mpiexec, library, "")
