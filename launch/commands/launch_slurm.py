"""``spade launch slurm``: a run as a job of Slurm."""

from __future__ import annotations

from launch.commands.launch_options import (
    Cluster,
    Config,
    DryRun,
    GpusPerNode,
    MaxRestarts,
    MinNodes,
    Nodes,
    Overrides,
    Processes,
)


def slurm(
    config: Config,
    overrides: Overrides = None,
    cluster: Cluster = None,
    nodes: Nodes = 1,
    min_nodes: MinNodes = None,
    processes: Processes = None,
    gpus_per_node: GpusPerNode = 0,
    max_restarts: MaxRestarts = 3,
    dry_run: DryRun = False,
) -> None:
    """Submit a training to Slurm, which runs it to its last step.

    The job goes on after preemption and the death of nodes, starts ranks that fail again, leaves
    out nodes that fail a check, and submits its successor before the time limit. Nothing is
    submitted that could not start. --dry-run shows the script.
    """
    from launch.clusters.job import Job
    from launch.clusters.slurm.submit import launch_slurm

    job = Job.of(
        config,
        overrides,
        nodes=nodes,
        min_nodes=min_nodes,
        processes=processes,
        gpus_per_node=gpus_per_node,
        max_restarts=max_restarts,
    )
    launch_slurm(job, cluster, dry_run=dry_run)
