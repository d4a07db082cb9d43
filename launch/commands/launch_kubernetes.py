"""``spade launch kubernetes``: hands a run to a Kubernetes cluster."""

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
from launch.console import say


def kubernetes(
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
    """Submit a training to Kubernetes: a TrainJob, PyTorchJob, MPIJob or JobSet.

    `--dry-run` prints the manifest and needs no cluster. Pods that are evicted save, and go on
    where there is room again; failures start all pods again from the newest checkpoint.
    """
    from launch.clusters.job import Job
    from launch.clusters.kubernetes.launching import prepare, render
    from launch.clusters.kubernetes.settings import KubernetesCluster
    from launch.clusters.kubernetes.submit import apply_manifest, following_commands
    from launch.clusters.record import append_event
    from launch.clusters.settings import load_cluster

    description = load_cluster(cluster, KubernetesCluster)
    job = Job.of(
        config,
        overrides,
        nodes=nodes,
        min_nodes=min_nodes,
        processes=processes,
        gpus_per_node=gpus_per_node,
        max_restarts=max_restarts,
    )
    workload, run = prepare(job, description)
    manifest = render(workload)
    if dry_run:
        say(manifest.rstrip("\n"))
        return
    say(apply_manifest(description, manifest))
    if description.volumes_here:
        append_event(
            run.run_path,
            "kubernetes",
            "submitted",
            job=f"{description.kind}/{workload.name}",
            nodes=nodes,
        )
    for purpose, command in following_commands(description, workload.name):
        say(f"{purpose}: {command}")
