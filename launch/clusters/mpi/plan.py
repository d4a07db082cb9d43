"""What exactly is started under MPI: pure words, for the launcher to run or to show."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.clusters.job import Job
from launch.clusters.mpi.flavours import (
    Flavour,
    Start,
    detect_flavour,
    hostfile_text,
    mpiexec_arguments,
)
from launch.clusters.mpi.rank import rank_program
from launch.clusters.mpi.settings import MpiCluster
from launch.clusters.shell import bash_command
from launch.failures import CommandError
from launch.mpi import PROBE, find_mpiexec, mpi_environment
from pretrain.resilience.failures import LOG_FOLDER_VARIABLE
from pretrain.run_folder import RunFolder

# Left in a user's shell they would be taken for the ranks' own.
_OF_OTHER_RUNS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# One of them tells that a scheduler has given this process machines, which mpiexec knows of.
_ALLOCATIONS = (
    *("SLURM_JOB_ID", "PBS_NODEFILE", "PBS_JOBID", "LSB_JOBID", "PE_HOSTFILE", "COBALT_JOBID"),
    "FLUX_JOB_ID",
)


@dataclass(frozen=True)
class MpiPlan:
    """A run under MPI."""

    job: Job
    description: MpiCluster
    mpiexec: Path
    flavour: Flavour
    hosts: tuple[str, ...]
    """Machines by name; none are those of the scheduler, or this one."""
    run: Path
    """The run's folder."""
    here: Path
    """Absolute; where the run's relative paths begin on this machine."""

    @property
    def hostfile(self) -> Path | None:
        """Where mpiexec's hostfile lies."""
        return self._launch_folder / "mpi-hostfile" if self.hosts else None

    @property
    def hostfile_text(self) -> str:
        """What stands in it."""
        return hostfile_text(self.flavour, self.hosts, self.job.processes_per_node)

    @property
    def config(self) -> Path:
        """The configuration that the ranks read."""
        return self._launch_folder / "config.yaml"

    def command(self) -> list[str]:
        """The program and arguments that run the training."""
        nodes = self.description.nodes
        ranks = self.job.processes_per_node
        program = rank_program(self.job.nodes, ranks, nodes.network_interface, self.config)
        return self._start(program)

    def probe_command(self) -> list[str]:
        """The same for ranks that only look whether they are one world."""
        return self._start(["-c", PROBE])

    def variables(self) -> dict[str, str]:
        """What all ranks get beside the environment of their machine."""
        own = {
            "PYTHONSAFEPATH": "1",  # a folder named launch in the user's own is not ours (3.11+)
            LOG_FOLDER_VARIABLE: str(RunFolder(self.run).logs.absolute()),
        }
        if self.description.library is not None:
            own["MPI4PY_LIBMPI"] = str(self.description.library)
        return {**own, **self.description.nodes.environment}

    def environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """The whole environment of mpiexec.

        Args:
            base: Environment to start from (default: ours).
        """
        inherited = mpi_environment() if base is None else base
        kept = {name: value for name, value in inherited.items() if name not in _OF_OTHER_RUNS}
        return kept | self.variables()

    def shown(self) -> str:
        """A line that a shell would run as the launcher does."""
        words = [f"{name}={value}" for name, value in self.variables().items()]
        return shlex.join(["env", *words, *self.command()])

    @property
    def _launch_folder(self) -> Path:
        return RunFolder(self.run).launch.resolve()

    def _start(self, arguments: Sequence[str]) -> list[str]:
        nodes = self.description.nodes
        program = [str(nodes.python or sys.executable), *arguments]
        folder = nodes.working_folder or self.here
        if nodes.source or nodes.modules:
            program = bash_command(nodes, folder, program)
        start = Start(
            nodes=self.job.nodes,
            processes_per_node=self.job.processes_per_node,
            program=tuple(program),
            working_folder=folder,
            variables=tuple(self.variables()),
            hostfile=self.hostfile,
            network_interface=nodes.network_interface,
            extra_arguments=self.description.extra_arguments,
        )
        return [str(self.mpiexec), *mpiexec_arguments(self.flavour, start)]


def make_plan(job: Job, description: MpiCluster, hosts: Sequence[str], run: Path) -> MpiPlan:
    """Find what is to be found out for a run.

    Args:
        job: The run.
        description: The cluster.
        hosts: Machines of the run; empty leaves them to the scheduler's allocation, or is this one.
        run: The run's folder.

    Raises:
        CommandError: There is no mpiexec, it is unknown, or nobody says which machines to use.
    """
    mpiexec = description.mpiexec or find_mpiexec()
    if mpiexec is None:
        raise CommandError(
            'no mpiexec found: pip install ".[mpi]" brings one, or name one as `mpiexec` in the '
            "cluster's description"
        )
    users = [host for host in hosts if "@" in host]
    if users:
        raise CommandError(f"{users[0]}: mpiexec takes no user name; put it into ~/.ssh/config")
    named = hosts or description.extra_arguments or any(name in os.environ for name in _ALLOCATIONS)
    if job.nodes > 1 and not named:
        raise CommandError(
            f"--nodes {job.nodes}: no scheduler has given this process machines; name them by "
            "--hostfile"
        )
    return MpiPlan(
        job=job,
        description=description,
        mpiexec=mpiexec,
        flavour=description.flavour or detect_flavour(mpiexec),
        hosts=tuple(hosts),
        run=run,
        here=Path.cwd(),
    )
