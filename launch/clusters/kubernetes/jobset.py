"""A run as a JobSet, which Kubeflow Trainer builds upon as well.

What ends a pod decides what happens, by the documented rules of Job and JobSet:

=================================== ==============================================================
a pod ends because                  then
=================================== ==============================================================
the run is done (0)                 the job is complete once all pods are
it was evicted, drained, preempted  all ranks save and leave with 75: every pod is made again, as
                                    often as it happens
it was killed before it could save  that pod is made again; the others lose it and count as failed
anything else failed                the whole set is made again, ``max_restarts`` times
it was called wrongly (2)           the job fails at once
=================================== ==============================================================
"""

from __future__ import annotations

from typing import Any

from launch.clusters.kubernetes.pods import Workload, node_program, pod_template
from launch.failures import EXIT_RESUMABLE, EXIT_USAGE

_GROUP = "node"


def jobset(workload: Workload) -> dict[str, Any]:
    """The JobSet."""
    specification = jobset_specification(workload)
    if workload.cluster.keep_finished_seconds is not None:
        specification["ttlSecondsAfterFinished"] = workload.cluster.keep_finished_seconds
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": workload.metadata(workload.name, **workload.queue_labels()),
        "spec": specification,
    }


def jobset_specification(workload: Workload, **labels: str) -> dict[str, Any]:
    """What a JobSet is to be: one job whose pods are the run's nodes.

    Args:
        workload: The run.
        labels: Of that job.
    """
    template: dict[str, Any] = {"spec": _job_specification(workload)}
    if labels:
        template = {"metadata": {"labels": labels}, **template}
    return {
        # Ranks look for the first pod before the kubelet calls it ready.
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "failurePolicy": {
            # Without a rule that fits, the set is made anew and the restart counts.
            "maxRestarts": workload.job.max_restarts,
            "rules": [
                # The only rule below that fails a job is the one about bad usage.
                {
                    "name": "badUsage",
                    "action": "FailJobSet",
                    "onJobFailureReasons": ["PodFailurePolicy"],
                }
            ],
        },
        "replicatedJobs": [{"name": _GROUP, "replicas": 1, "template": template}],
    }


def _job_specification(workload: Workload) -> dict[str, Any]:
    program = node_program(
        workload,
        rank_variable="JOB_COMPLETION_INDEX",
        # JobSet gives its pods these names in DNS; the last 0 is the first pod.
        master=f"{workload.name}-{_GROUP}-0-0.{workload.name}",
    )
    nodes = workload.job.nodes
    return {
        "completionMode": "Indexed",
        "parallelism": nodes,
        "completions": nodes,
        # One failed pod is the end of all: the set restarts together, with fresh connections.
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                # Evicted, drained or preempted: no failure of the run's.
                {"action": "Ignore", "onPodConditions": [_condition("DisruptionTarget")]},
                # Its peers saved with it and stopped; all come back.
                {"action": "Ignore", "onExitCodes": _exit_code(EXIT_RESUMABLE)},
                # Would fail again in the same way.
                {"action": "FailJob", "onExitCodes": _exit_code(EXIT_USAGE)},
            ]
        },
        "template": pod_template(workload, _GROUP, program, restart_policy="Never"),
    }


def _condition(name: str) -> dict[str, str]:
    return {"type": name, "status": "True"}


def _exit_code(code: int) -> dict[str, Any]:
    return {"containerName": _GROUP, "operator": "In", "values": [code]}
