"""``spade launch``: starts the ranks of a run and keeps it running."""

from __future__ import annotations

import shlex
import sys

import typer

from launch.commands.launch_options import (
    Config,
    DryRun,
    GpusPerNode,
    MaxRestarts,
    Overrides,
    Processes,
)
from launch.console import say


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
    # With one command a group would be that command.
    group.callback()(lambda: None)
    application.add_typer(group, name="launch")


def local(
    config: Config,
    overrides: Overrides = None,
    processes: Processes = None,
    gpus_per_node: GpusPerNode = 0,
    max_restarts: MaxRestarts = 3,
    dry_run: DryRun = False,
) -> None:
    """Run a training as several processes of this machine; Ctrl-C saves and ends all of them.

    Ranks that are killed, hang or lose one another are started again from the newest checkpoint;
    each newer checkpoint gives all restarts back. Exit codes are those of `spade pretrain`.
    """
    from launch.clusters.job import Job
    from launch.local import local_command, run_local

    job = Job.of(
        config,
        overrides,
        processes=processes,
        gpus_per_node=gpus_per_node,
        max_restarts=max_restarts,
    )
    arguments = [str(config), *job.overrides]
    if dry_run:
        job.load().most_accumulation_steps(job.processes_per_node)
        worker = ["-m", "launch.cli", "pretrain", *arguments]
        say(shlex.join([sys.executable, *local_command(worker, job.processes_per_node)]))
        return
    result = run_local(arguments, processes=job.processes_per_node, max_restarts=job.max_restarts)
    if result.restarts:
        say(f"restarted {result.restarts} times")
    if result.exit_code:
        raise typer.Exit(result.exit_code if result.exit_code > 0 else 128 - result.exit_code)
