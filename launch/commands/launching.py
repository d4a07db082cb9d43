"""``spade launch``: starts the ranks of a run and keeps it running."""

from __future__ import annotations

import typer

from launch.commands.launch_kubernetes import kubernetes
from launch.commands.launch_local import local
from launch.commands.launch_mpi import mpi
from launch.commands.launch_slurm import slurm
from launch.commands.launch_ssh import ssh


def register(application: typer.Typer) -> None:
    """Adds the group."""
    group = typer.Typer(
        help="Start a run on a machine or a cluster and keep it running.",
        epilog="Example: spade launch local configs/quickstart.yaml --processes 2 --max-restarts 3",
        no_args_is_help=True,
    )
    group.command(
        "local",
        epilog="Example: spade launch local configs/quickstart.yaml name=trial --processes 2",
    )(local)
    group.command(
        "kubernetes",
        epilog="Example: spade launch kubernetes configs/base.yaml run_dir=/runs "
        "--cluster configs/clusters/kubernetes.yaml --nodes 4 --gpus-per-node 8 --dry-run",
    )(kubernetes)
    group.command(
        "ssh",
        epilog="Example: spade launch ssh configs/quickstart.yaml --hostfile hosts.txt",
    )(ssh)
    group.command(
        "slurm",
        epilog="Example: spade launch slurm configs/quickstart.yaml "
        "--cluster configs/clusters/slurm.yaml --nodes 2 --min-nodes 1",
    )(slurm)
    group.command(
        "mpi",
        epilog="Example: spade launch mpi configs/quickstart.yaml --hostfile hosts.txt",
    )(mpi)
    application.add_typer(group, name="launch")
