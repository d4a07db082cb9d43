"""A run as an MPIJob (v2beta1) of the MPI Operator: workers with sshd, and a launcher beside them.

The launcher runs ``spade launch mpi``, the loop that also restarts ranks elsewhere, over the
hostfile that the operator writes. The operator itself only starts the launcher's pod again.
"""

from __future__ import annotations

from typing import Any

from launch.clusters.kubernetes.pods import Workload, config_map, pod_template, variables
from launch.clusters.kubernetes.settings import CONFIG_FOLDER
from pretrain.yaml_text import to_yaml

_MPI_FILE = "mpi.yaml"
_HOSTFILE = "/etc/mpi/hostfile"
_SSH_FOLDER = "/home/spade/.ssh"
_SSH_PORT = 2222
_SSHD = ["/usr/sbin/sshd", "-De", "-f", "/etc/ssh/sshd_config.spade"]


def mpi_config_map(workload: Workload) -> dict[str, Any]:
    """The configuration, and the description of the workers as an MPI cluster."""
    made = config_map(workload)
    nodes = workload.cluster.nodes
    known: dict[str, Any] = {
        "working_folder": None if nodes.working_folder is None else str(nodes.working_folder),
        "network_interface": nodes.network_interface,
        "environment": variables(workload),  # sshd does not hand on those of the pod
    }
    description = {"nodes": {key: value for key, value in known.items() if value is not None}}
    made["data"][_MPI_FILE] = to_yaml(description)
    return made


def mpi_job(workload: Workload) -> dict[str, Any]:
    """The MPIJob."""
    job, cluster = workload.job, workload.cluster
    ready = {"tcpSocket": {"port": _SSH_PORT}, "periodSeconds": 2}
    policy: dict[str, Any] = {
        # Of the launcher's pod, where it was evicted: failures of ranks it counts itself.
        "backoffLimit": max(1, job.max_restarts),
        "cleanPodPolicy": "Running",  # sshd does not end by itself
    }
    if cluster.keep_finished_seconds is not None:
        policy["ttlSecondsAfterFinished"] = cluster.keep_finished_seconds
    return {
        "apiVersion": "kubeflow.org/v2beta1",
        "kind": "MPIJob",
        "metadata": workload.metadata(workload.name, **workload.queue_labels()),
        "spec": {
            "slotsPerWorker": job.processes_per_node,
            "runPolicy": policy,
            "sshAuthMountPath": _SSH_FOLDER,
            "launcherCreationPolicy": "WaitForWorkersReady",
            "mpiImplementation": "OpenMPI",
            "mpiReplicaSpecs": {
                "Launcher": {
                    "replicas": 1,
                    "restartPolicy": "Never",
                    "template": pod_template(
                        workload, "launcher", _launcher_program(workload), computes=False
                    ),
                },
                "Worker": {
                    "replicas": job.nodes,
                    "restartPolicy": "OnFailure",
                    "template": pod_template(
                        workload,
                        "worker",
                        _SSHD,
                        ports=[{"name": "ssh", "containerPort": _SSH_PORT}],
                        readiness=ready,
                    ),
                },
            },
        },
    }


def _launcher_program(workload: Workload) -> list[str]:
    job = workload.job
    return [
        *("python", "-m", "launch.cli", "launch", "mpi", workload.config_path),
        *("--cluster", str(CONFIG_FOLDER / _MPI_FILE), "--hostfile", _HOSTFILE),
        *("--nodes", str(job.nodes)),
        *("--processes", str(job.processes_per_node), "--gpus-per-node", str(job.gpus_per_node)),
        *("--max-restarts", str(job.max_restarts)),
    ]
