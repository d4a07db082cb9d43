"""What the projects publish about their objects, as one question: what is wrong with this one?

Core objects: Kubernetes' own JSON schemas (package kubernetes-validate). JobSet and Kubeflow
Trainer: the models of package kubeflow-trainer-api; PyTorchJob: those of kubeflow-training. Models
drop a key they do not know without a word, so that what comes back is compared with what went in.
MPIJob v2beta1 has no package: its keys are listed here as the operator's types have them
(github.com/kubeflow/mpi-operator, pkg/apis/kubeflow/v2beta1/types.go and
manifests/base/kubeflow.org_mpijobs.yaml).
"""

from __future__ import annotations

import functools
import json
from typing import Any

import jsonschema

KUBERNETES = "1.31"  # the first release in which podFailurePolicy is stable

_NUMBER = {"type": "integer", "minimum": 0}
_REPLICA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["template"],
    "properties": {
        "replicas": _NUMBER,
        "restartPolicy": {"enum": ["Never", "OnFailure"]},
        "template": {"type": "object"},  # looked at as a pod
    },
}
MPIJOB = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "kubeflow.org/v2beta1"},
        "kind": {"const": "MPIJob"},
        "metadata": {"type": "object"},  # looked at as a pod's
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["mpiReplicaSpecs"],
            "properties": {
                "launcherCreationPolicy": {"enum": ["AtStartup", "WaitForWorkersReady"]},
                "mpiImplementation": {"enum": ["OpenMPI", "Intel", "MPICH"]},
                "mpiReplicaSpecs": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["Launcher"],
                    "properties": {"Launcher": _REPLICA, "Worker": _REPLICA},
                },
                "runLauncherAsWorker": {"type": "boolean"},
                "runPolicy": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "activeDeadlineSeconds": _NUMBER,
                        "backoffLimit": _NUMBER,
                        "cleanPodPolicy": {"enum": ["All", "Running", "None"]},
                        "managedBy": {"type": "string"},
                        "schedulingPolicy": {"type": "object"},
                        "suspend": {"type": "boolean"},
                        "ttlSecondsAfterFinished": _NUMBER,
                    },
                },
                "slotsPerWorker": _NUMBER,
                "sshAuthMountPath": {"type": "string"},
            },
        },
    },
}


def problems(made: dict[str, Any]) -> list[str]:
    """What the published schemas say against an object; empty where nothing."""
    try:
        check = _CHECKS[made["kind"]]
    except KeyError:
        return [f"kind {made.get('kind')!r} is none that the launcher makes"]
    try:
        return check(made)
    except Exception as error:  # a model says by all kinds of errors what it does not take
        return [f"{type(error).__name__}: {str(error).splitlines()[0]}"]


def _core(made: dict[str, Any]) -> list[str]:
    return list(_core_problems(json.dumps(made, sort_keys=True)))


@functools.cache
def _core_problems(made: str) -> list[str]:
    """Kept, since most of two manifests is the same."""
    import kubernetes_validate
    from kubernetes_validate import utils

    if not hasattr(utils.schema_contents, "cache_info"):
        # It reads a megabyte of definitions for each look.
        utils.schema_contents = functools.cache(utils.schema_contents)
    try:
        kubernetes_validate.validate(json.loads(made), KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [str(error).splitlines()[0]]
    return []


def _pod(template: dict[str, Any]) -> list[str]:
    return _core({"apiVersion": "v1", "kind": "Pod", **{"metadata": {}, **template}})


def _metadata(made: dict[str, Any]) -> list[str]:
    return _core({"apiVersion": "v1", "kind": "ConfigMap", "metadata": made["metadata"]})


def _jobs(specification: dict[str, Any]) -> list[str]:
    return [
        problem
        for group in specification["replicatedJobs"]
        for problem in _core({"apiVersion": "batch/v1", "kind": "Job", **group["template"]})
    ]


def _round_trip(model: str, made: dict[str, Any]) -> list[str]:
    from kubeflow_trainer_api import models

    back = getattr(models, model).from_dict(made).to_dict()
    return [] if _without_none(back) == made else [f"{model} does not know a key"]


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _jobset(made: dict[str, Any]) -> list[str]:
    return _round_trip("JobsetV1alpha2JobSet", made) + _jobs(made["spec"])


def _training_runtime(made: dict[str, Any]) -> list[str]:
    found = _round_trip("TrainerV1alpha1TrainingRuntime", made)
    return found + _jobs(made["spec"]["template"]["spec"])


def _train_job(made: dict[str, Any]) -> list[str]:
    return _round_trip("TrainerV1alpha1TrainJob", made) + _metadata(made)


def _pytorch_job(made: dict[str, Any]) -> list[str]:
    from kubeflow.training.api_client import ApiClient

    class Answer:
        """As if a server had sent it."""

        data = json.dumps(made)

    client = ApiClient()
    back = client.deserialize(Answer, "KubeflowOrgV1PyTorchJob")
    found = [] if client.sanitize_for_serialization(back) == made else ["PyTorchJob: unknown key"]
    replicas = made["spec"]["pytorchReplicaSpecs"]
    if not replicas.keys() <= {"Master", "Worker"}:
        found.append(f"replicas {sorted(replicas)}")
    for replica in replicas.values():
        if replica.get("restartPolicy") not in ("Always", "OnFailure", "Never", "ExitCode"):
            found.append(f"restartPolicy {replica.get('restartPolicy')}")
        found += _pod(replica["template"])
    return found


def _mpi_job(made: dict[str, Any]) -> list[str]:
    found = [error.message for error in jsonschema.Draft7Validator(MPIJOB).iter_errors(made)]
    for replica in made["spec"]["mpiReplicaSpecs"].values():
        found += _pod(replica["template"])
    return found + _metadata(made)


_CHECKS = {
    "ConfigMap": _core,
    "JobSet": _jobset,
    "TrainingRuntime": _training_runtime,
    "TrainJob": _train_job,
    "PyTorchJob": _pytorch_job,
    "MPIJob": _mpi_job,
}
