"""What the description of a cluster says where its machines are driven by MPI."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from launch.clusters.mpi.flavours import Flavour
from launch.clusters.settings import ClusterSettings, Word


class MpiCluster(ClusterSettings):
    """Machines on which mpiexec starts the ranks."""

    mpiexec: Path | None = None
    """The program that starts ranks; none is the one beside the interpreter, else the first on
    PATH."""
    flavour: Flavour | None = None
    """Whose options it takes, and whose style of hostfile: openmpi, mpich or intel; none asks
    `mpiexec --version`. MVAPICH and others with MPICH's process manager are mpich."""
    library: Path | None = None
    """The libmpi.so that belongs to it, for mpi4py (MPI4PY_LIBMPI), on the machines; none leaves
    the choice to mpi4py, which takes one beside the interpreter first."""
    extra_arguments: tuple[Word, ...] = ()
    """Further arguments of mpiexec, each a word of its own."""
    wait_for_hosts_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3600.0
    """After a failure, longest wait until mpiexec can start ranks on all machines again."""
