"""A run as a TrainJob of Kubeflow Trainer 2, with a TrainingRuntime of its own.

The runtime is where Trainer keeps all that a user does not change from job to job. Volumes,
shared memory and failure policies belong there, so each run brings one, in its own namespace.
"""

from __future__ import annotations

from typing import Any

from launch.clusters.kubernetes.jobset import jobset_specification
from launch.clusters.kubernetes.pods import Workload

_GROUP = "trainer.kubeflow.org"
_VERSION = f"{_GROUP}/v1alpha1"


def training_runtime(workload: Workload) -> dict[str, Any]:
    """The runtime: how a node of this run looks."""
    # By this label Trainer finds the job whose pods are the nodes.
    step = {f"{_GROUP}/trainjob-ancestor-step": "trainer"}
    return {
        "apiVersion": _VERSION,
        "kind": "TrainingRuntime",
        "metadata": workload.metadata(workload.name, **{f"{_GROUP}/framework": "torch"}),
        "spec": {
            # Without numProcPerNode, which releases since 2.2 know in the TrainJob only.
            "mlPolicy": {"numNodes": workload.job.nodes, "torch": {}},
            "template": {"spec": jobset_specification(workload, **step)},
        },
    }


def train_job(workload: Workload) -> dict[str, Any]:
    """The job: how many nodes and ranks."""
    return {
        "apiVersion": _VERSION,
        "kind": "TrainJob",
        "metadata": workload.metadata(workload.name, **workload.queue_labels()),
        "spec": {
            "runtimeRef": {"apiGroup": _GROUP, "kind": "TrainingRuntime", "name": workload.name},
            "trainer": {
                "numNodes": workload.job.nodes,
                "numProcPerNode": workload.job.processes_per_node,
            },
        },
    }
