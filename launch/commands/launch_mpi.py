"""``spade launch mpi``: mpiexec of Open MPI, MPICH or Intel MPI starts the ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.commands.launch_ending import end_as
from launch.commands.launch_options import (
    Cluster,
    Config,
    DryRun,
    GpusPerNode,
    MaxRestarts,
    Overrides,
)


def mpi(
    config: Config,
    overrides: Overrides = None,
    hostfile: Annotated[
        Path | None,
        typer.Option(
            help="Machines, HOST slots=N a line (default: those of the scheduler's allocation, or "
            "this one).",
            metavar="FILE",
        ),
    ] = None,
    cluster: Cluster = None,
    nodes: Annotated[
        int | None,
        typer.Option(min=1, help="Machines (default: all of the hostfile, or one)."),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1, help="Ranks of each machine (default: one a GPU, or its slots in the hostfile)."
        ),
    ] = None,
    gpus_per_node: GpusPerNode = 0,
    max_restarts: MaxRestarts = 3,
    dry_run: DryRun = False,
) -> None:
    """Run a training by mpiexec of Open MPI, MPICH or Intel MPI; Ctrl-C saves and ends all of it.

    The mpiexec must be that of the MPI which mpi4py uses. The run, its data and this package must
    lie on folders that all machines share. Ranks that fail, and machines that vanish and come back,
    go on from the newest checkpoint. Exit codes are those of `spade pretrain`.
    """
    from launch.clusters.job import Job
    from launch.clusters.mpi.launcher import MpiLauncher
    from launch.clusters.mpi.plan import make_plan
    from launch.clusters.mpi.settings import MpiCluster
    from launch.clusters.preflight import check_before_launch
    from launch.clusters.settings import load_cluster
    from launch.clusters.ssh.hostfile import pick_hosts, read_hostfile

    description = load_cluster(cluster, MpiCluster)
    names: list[str] = []
    ranks = processes or gpus_per_node or None
    if hostfile is not None:
        hosts, ranks = pick_hosts(read_hostfile(hostfile), nodes=nodes, processes=ranks)
        names = [host.name for host in hosts]
    job = Job.of(
        config,
        overrides,
        nodes=len(names) or nodes or 1,
        processes=ranks,
        gpus_per_node=gpus_per_node,
        max_restarts=max_restarts,
    )
    checked = check_before_launch(job, description.nodes)
    launcher = MpiLauncher(make_plan(job, description, names, checked.run_path), checked)
    if dry_run:
        launcher.show()
        return
    result = launcher.run()
    end_as(result)
