"""``spade launch ssh``: a hostfile of machines that ssh reaches."""

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
    MinNodes,
    Overrides,
)


def ssh(
    config: Config,
    hostfile: Annotated[
        Path,
        typer.Option(help="Machines, HOST slots=N a line, as for DeepSpeed.", metavar="FILE"),
    ],
    overrides: Overrides = None,
    cluster: Cluster = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="Machines from the top of the file (default: all).")
    ] = None,
    min_nodes: MinNodes = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Ranks of each machine (default: its slots in the file)."),
    ] = None,
    gpus_per_node: GpusPerNode = 0,
    max_restarts: MaxRestarts = 3,
    dry_run: DryRun = False,
) -> None:
    """Run a training on machines that ssh reaches; Ctrl-C saves and ends all of it.

    Log-ins must work without a password, host keys must be known, and the run, its data and this
    package must lie on folders that all machines share. Ranks that fail, and machines that vanish
    and come back, go on from the newest checkpoint. Exit codes are those of `spade pretrain`.
    """
    from launch.clusters.job import Job
    from launch.clusters.settings import load_cluster
    from launch.clusters.ssh.hostfile import pick_hosts, read_hostfile
    from launch.clusters.ssh.launcher import SshLauncher
    from launch.clusters.ssh.settings import SshCluster

    description = load_cluster(cluster, SshCluster)
    hosts, ranks = pick_hosts(
        read_hostfile(hostfile), nodes=nodes, processes=processes or gpus_per_node or None
    )
    job = Job.of(
        config,
        overrides,
        nodes=len(hosts),
        min_nodes=min_nodes,
        processes=ranks,
        gpus_per_node=gpus_per_node,
        max_restarts=max_restarts,
    )
    launcher = SshLauncher(job, hosts, description)
    if dry_run:
        launcher.show()
        return
    result = launcher.run()
    end_as(result)
