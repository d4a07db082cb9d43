"""From a configuration and a cluster to a submitted job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from launch.clusters.job import Job
from launch.clusters.kubernetes.manifests import manifests, to_manifest
from launch.clusters.kubernetes.pods import Workload
from launch.clusters.kubernetes.settings import KubernetesCluster
from launch.clusters.kubernetes.text import object_name
from launch.clusters.preflight import check_before_launch
from launch.console import warn
from launch.failures import CommandError
from pretrain.config import RunConfig

_LARGEST_CONFIG_BYTES = 200_000  # kubectl notes what it applied in 256 KiB of annotations


def prepare(job: Job, cluster: KubernetesCluster) -> tuple[Workload, RunConfig]:
    """Check all that can be checked from here, and name the run's objects.

    Raises:
        CommandError: One line a problem.
    """
    if job.min_nodes != job.nodes:
        raise CommandError(
            f"--min-nodes {job.min_nodes}: Kubernetes waits until all pods have a node again; "
            "leave it out"
        )
    if not cluster.volumes_here:
        warn(
            "the data and the run's folder are not looked at: they lie on volumes of the cluster "
            "(volumes_here: true where this machine mounts them under the same paths)"
        )
    config = check_before_launch(job, cluster.nodes, data_here=cluster.volumes_here)
    problems = [*_place_problems(config, cluster)]
    workload = Workload(object_name(config.name), job, cluster, config.to_yaml())
    if len(workload.config.encode()) > _LARGEST_CONFIG_BYTES:
        problems.append(
            "the configuration is longer than 200 kB, more than kubectl takes; shorten it"
        )
    if problems:
        raise CommandError("\n".join(problems))
    return workload, config


def render(workload: Workload) -> str:
    """The manifest of a run."""
    return to_manifest(manifests(workload))


def _place_problems(config: RunConfig, cluster: KubernetesCluster) -> Iterator[str]:
    """What lies on no volume is gone with the pod, and is not there for the others."""
    run = cluster.in_pod(config.run_path)
    volume = cluster.volume_of(config.run_path)
    mounted = ", ".join(volume.mount_path for volume in cluster.volumes) or "none"
    if volume is None:
        yield (
            f"run_dir: {run} lies on no volume and would be lost with the pods; put it below one "
            f"(mounted: {mounted})"
        )
    elif volume.read_only:
        yield f"run_dir: {run} lies on a volume with read_only: true; choose another"
    data = config.data
    places = {"data.train": data.locations(), "data.heldout": data.heldout_locations()}
    for field, named in places.items():
        for place in named.values():
            if isinstance(place, Path) and cluster.volume_of(place) is None:
                yield (
                    f"{field}: {cluster.in_pod(place)} lies on no volume, so that no pod sees it; "
                    f"put it below one (mounted: {mounted})"
                )
