"""``spade launch local``: the ranks of a run on this machine."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

from launch.commands.launch_ending import end_as
from launch.commands.launch_options import (
    Config,
    DryRun,
    GpusPerNode,
    MaxRestarts,
    Overrides,
    Processes,
)
from launch.console import say

if TYPE_CHECKING:
    from launch.clusters.job import Job


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

    job = Job.of(
        config,
        overrides,
        processes=processes,
        gpus_per_node=gpus_per_node,
        max_restarts=max_restarts,
    )
    if dry_run:
        _show_local(job)
        return
    from launch.local import run_job

    result = run_job(job)
    end_as(result)


def _show_local(job: Job) -> None:
    """Prints what would be written, and the command with the variables that it would be given."""
    from launch.clusters.job import frozen_config_path
    from launch.clusters.preflight import check_before_launch
    from launch.clusters.settings import NodeSettings
    from launch.local import local_command, pretrain_worker, worker_environment

    config = check_before_launch(job, NodeSettings())
    path = frozen_config_path(config)
    processes = job.processes_per_node
    variables = worker_environment(processes, run=config.run_path)
    added = [
        f"{name}={value}" for name, value in variables.items() if os.environ.get(name) != value
    ]
    command = local_command(pretrain_worker(path), processes)
    say(f"# would write the configuration, as it was checked, to {path}")
    say(shlex.join(["env", *added, *command]))
