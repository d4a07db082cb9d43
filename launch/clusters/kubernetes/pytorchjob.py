"""A run as a PyTorchJob of the older Kubeflow Training Operator.

It knows no rules about exit codes that would fit ours (with ``ExitCode`` it takes 75, saved and
stopped, for the end), so that every end but success is tried again, and counted.
"""

from __future__ import annotations

from typing import Any

from launch.clusters.kubernetes.pods import Workload, node_program, pod_template

_CONTAINER = "pytorch"  # the operator looks for containers and ports of these names
_PORT = "pytorchjob-port"


def pytorch_job(workload: Workload) -> dict[str, Any]:
    """The PyTorchJob: a master, which is the first node, and workers."""
    job, cluster = workload.job, workload.cluster
    replicas = {"Master": _replica(workload, 1)}
    if job.nodes > 1:
        replicas["Worker"] = _replica(workload, job.nodes - 1)
    policy: dict[str, Any] = {
        # The operator adds up the restarts of all containers, and a failure restarts each once.
        "backoffLimit": job.max_restarts * job.nodes,
        # Pods end by themselves; their output stays readable.
        "cleanPodPolicy": "None",
    }
    if cluster.keep_finished_seconds is not None:
        policy["ttlSecondsAfterFinished"] = cluster.keep_finished_seconds
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": workload.metadata(workload.name, **workload.queue_labels()),
        "spec": {"runPolicy": policy, "pytorchReplicaSpecs": replicas},
    }


def _replica(workload: Workload, count: int) -> dict[str, Any]:
    program = node_program(
        workload,
        rank_variable="RANK",  # here of the pod: torchrun sets that of each process
        master=f"{workload.name}-master-0",
    )
    port = {"name": _PORT, "containerPort": workload.cluster.master_port}
    return {
        "replicas": count,
        # In place where a rank failed, as a new pod where the pod was evicted.
        "restartPolicy": "OnFailure" if workload.job.max_restarts else "Never",
        "template": pod_template(workload, _CONTAINER, program, ports=[port]),
    }
