"""The pods of a run, as plain data: what they run, on what, and which folders they see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launch.clusters.job import Job
from launch.clusters.kubernetes.settings import (
    CONFIG_FOLDER,
    SHARED_MEMORY_FOLDER,
    KubernetesCluster,
    Volume,
)
from launch.clusters.kubernetes.text import literal

CONFIG_FILE = "config.yaml"


@dataclass(frozen=True)
class Workload:
    """A run on a cluster, under its name there."""

    name: str
    """Of all objects that are made; what belongs to them begins with it."""
    job: Job
    cluster: KubernetesCluster
    config: str
    """The checked configuration as YAML."""

    @property
    def config_map(self) -> str:
        """Name of the ConfigMap that holds the configuration."""
        return f"{self.name}-run"  # the MPI Operator makes a NAME-config itself

    @property
    def config_path(self) -> str:
        """Where the ranks find the configuration."""
        return str(CONFIG_FOLDER / CONFIG_FILE)

    def metadata(self, name: str, **labels: str) -> dict[str, Any]:
        """What every object begins with."""
        return {
            "name": name,
            "namespace": self.cluster.namespace,
            "labels": {"app.kubernetes.io/name": "spade-pretrain", **self.cluster.labels, **labels},
        }

    def queue_labels(self) -> dict[str, str]:
        """Kueue looks for its queue on the job."""
        queue = self.cluster.queue
        return {} if queue is None else {"kueue.x-k8s.io/queue-name": queue}


def config_map(workload: Workload) -> dict[str, Any]:
    """The configuration, which the pods see as a file."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": workload.metadata(workload.config_map),
        "data": {CONFIG_FILE: workload.config},
    }


def node_program(workload: Workload, *, rank_variable: str, master: str) -> list[str]:
    """The program of a pod that is one node of the run.

    Args:
        workload: The run.
        rank_variable: Variable in which the pod finds its place among all.
        master: Name by which the other pods reach the first one.
    """
    job, interface = workload.job, workload.cluster.nodes.network_interface
    return [
        *("python", "-m", "launch.clusters.node", "--nodes", str(job.nodes)),
        *("--node-rank-variable", rank_variable, "--processes", str(job.processes_per_node)),
        *("--master-address", master, "--master-port", str(workload.cluster.master_port)),
        *([] if interface is None else [f"--network-interface={interface}"]),
        workload.config_path,
    ]


def pod_template(
    workload: Workload,
    container: str,
    program: Sequence[str],
    *,
    restart_policy: str | None = None,
    computes: bool = True,
    ports: Sequence[dict[str, Any]] = (),
    readiness: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A pod, without the name that its owner gives it.

    Args:
        workload: The run.
        container: Name of its one container; operators look for theirs.
        program: What it runs: an argument vector, no shell.
        restart_policy: What the kubelet does after its end; none leaves it to the operator.
        computes: Whether ranks run in it, which need CPUs, memory and GPUs.
        ports: Where it listens.
        readiness: How the kubelet sees that it is ready.
    """
    cluster = workload.cluster
    specification: dict[str, Any] = {
        "restartPolicy": restart_policy,
        "serviceAccountName": cluster.service_account,
        "priorityClassName": cluster.priority_class,
        "terminationGracePeriodSeconds": cluster.termination_grace_seconds,
        "securityContext": _pod_security(cluster),
        "imagePullSecrets": [{"name": name} for name in cluster.image_pull_secrets],
        "nodeSelector": dict(cluster.node_selector),
        "tolerations": [_toleration(item) for item in cluster.tolerations],
        "containers": [
            _without_empty(
                {
                    "name": container,
                    "image": cluster.image,
                    "imagePullPolicy": cluster.image_pull_policy,
                    "command": [literal(word) for word in program],
                    "workingDir": str(cluster.nodes.working_folder or ""),
                    "env": [
                        {"name": name, "value": literal(value)}
                        for name, value in variables(workload).items()
                    ],
                    "envFrom": [
                        {"secretRef": {"name": name}} for name in cluster.secret_environment
                    ],
                    "ports": list(ports),
                    "readinessProbe": readiness,
                    "resources": _resources(workload) if computes else None,
                    "securityContext": _container_security(cluster),
                    "volumeMounts": _mounts(cluster),
                }
            )
        ],
        "volumes": _volumes(workload),
    }
    metadata = {"labels": dict(cluster.labels), "annotations": dict(cluster.annotations)}
    template = {"metadata": _without_empty(metadata), "spec": _without_empty(specification)}
    return _without_empty(template)


def _without_empty(values: dict[str, Any]) -> dict[str, Any]:
    """What was not asked for stays away from the manifest."""
    return {key: value for key, value in values.items() if value not in (None, "", [], {})}


def variables(workload: Workload) -> dict[str, str]:
    """What the ranks find in their environment, as plain text."""
    nodes, job = workload.cluster.nodes, workload.job
    made = {"PYTHONUNBUFFERED": "1"}
    if workload.cluster.cpus is not None:
        # A pod sees all cores of its node, whatever it was given.
        threads = max(1, int(_cores(workload.cluster.cpus) / job.processes_per_node))
        made["OMP_NUM_THREADS"] = str(threads)
    return made | nodes.environment


def _cores(quantity: str) -> float:
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def _resources(workload: Workload) -> dict[str, Any]:
    cluster, gpus = workload.cluster, workload.job.gpus_per_node
    # Without a limit on CPUs idle ones of the node can be used; memory cannot be given back.
    requests = _without_empty({"cpu": cluster.cpus, "memory": cluster.memory})
    limits = _without_empty({"memory": cluster.memory})
    if gpus:
        requests[cluster.gpu_resource] = limits[cluster.gpu_resource] = str(gpus)
    return _without_empty({"requests": requests, "limits": limits})


def _pod_security(cluster: KubernetesCluster) -> dict[str, Any] | None:
    user = cluster.user
    if user is None:
        return None
    security: dict[str, Any] = {
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        # Changing the owner of every shard at every start takes hours.
        "fsGroupChangePolicy": "OnRootMismatch",
    }
    if user:
        security |= {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    return security


def _container_security(cluster: KubernetesCluster) -> dict[str, Any] | None:
    # What namespaces with the standard "restricted" ask for.
    if not cluster.user:
        return None
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _toleration(item: Any) -> dict[str, str]:
    toleration = {"key": item.key, "operator": "Exists" if item.value is None else "Equal"}
    if item.value is not None:
        toleration["value"] = item.value
    if item.effect is not None:
        toleration["effect"] = item.effect
    return toleration


def _mounts(cluster: KubernetesCluster) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [
        {"name": "run", "mountPath": str(CONFIG_FOLDER), "readOnly": True}
    ]
    if cluster.shared_memory_gib is not None:
        mounts.append({"name": "shared-memory", "mountPath": str(SHARED_MEMORY_FOLDER)})
    for number, volume in enumerate(cluster.volumes):
        mount = {"name": f"volume-{number}", "mountPath": volume.mount_path}
        mounts.append(
            _without_empty(
                {**mount, "subPath": volume.sub_path, "readOnly": volume.read_only or None}
            )
        )
    return mounts


def _volumes(workload: Workload) -> list[dict[str, Any]]:
    cluster = workload.cluster
    volumes: list[dict[str, Any]] = [
        {"name": "run", "configMap": {"name": workload.config_map}},
    ]
    if cluster.shared_memory_gib is not None:
        size = f"{cluster.shared_memory_gib}Gi"
        volumes.append(
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": size}}
        )
    for number, volume in enumerate(cluster.volumes):
        volumes.append({"name": f"volume-{number}", **_source(volume)})
    return volumes


def _source(volume: Volume) -> dict[str, Any]:
    read_only = volume.read_only or None
    if volume.claim is not None:
        claim = {"claimName": volume.claim, "readOnly": read_only}
        return {"persistentVolumeClaim": _without_empty(claim)}
    if volume.csi is not None:
        secret = volume.csi.secret
        return {
            "csi": _without_empty(
                {
                    "driver": volume.csi.driver,
                    "readOnly": read_only,
                    "volumeAttributes": dict(volume.csi.attributes),
                    "nodePublishSecretRef": None if secret is None else {"name": secret},
                }
            )
        }
    assert volume.nfs is not None
    share = {"server": volume.nfs.server, "path": volume.nfs.path, "readOnly": read_only}
    return {"nfs": _without_empty(share)}
