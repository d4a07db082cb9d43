"""Manifests are what the projects' published schemas take, and a misspelt key is not."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.clusters.job import Job
from launch.clusters.kubernetes.manifests import manifests, to_manifest
from launch.clusters.kubernetes.pods import Workload
from launch.clusters.kubernetes.settings import KubernetesCluster
from launch.clusters.mpi.settings import MpiCluster
from launch.clusters.settings import load_cluster

EXAMPLE = Path(__file__).resolve().parents[2] / "configs" / "clusters" / "kubernetes.yaml"
KINDS = ["trainjob", "pytorchjob", "mpijob", "jobset"]
# In these maps the user, not a schema, chooses the keys.
FREE_MAPS = {"labels", "annotations", "nodeSelector", "data", "requests", "limits"}
FREE_MAPS |= {"volumeAttributes"}
EVERYTHING: dict[str, Any] = {
    "namespace": "training",
    "image": "registry.example/team/spade-pretrain:1.0",
    "image_pull_secrets": ["registry-key"],
    "volumes": [
        {"mount_path": "/runs", "claim": "runs", "sub_path": "team/a"},
        {
            "mount_path": "/data",
            "csi": {
                "driver": "gcsfuse.csi.storage.gke.io",
                "attributes": {"bucketName": "corpus"},
                "secret": "bucket-key",
            },
            "read_only": True,
        },
        {"mount_path": "/old", "nfs": {"server": "nfs.example", "path": "/export"}},
    ],
    "cpus": "16",
    "memory": "64Gi",
    "node_selector": {"gpu": "h100"},
    "tolerations": [
        {"key": "nvidia.com/gpu", "effect": "NoSchedule"},
        {"key": "team", "value": "a b"},
    ],
    "labels": {"team": "models"},
    "annotations": {"gke-gcsfuse/volumes": "true"},
    "secret_environment": ["object-store"],
    "service_account": "trainer",
    "priority_class": "batch",
    "queue": "research",
    "keep_finished_seconds": 3600,
    "nodes": {
        "working_folder": "/runs/here",
        "environment": {"PRICE": "$(HOME) $$ y"},
        "network_interface": "eth0",
    },
}


def workload(
    settings: dict[str, Any], *, nodes: int = 3, gpus: int = 8, config: str = "name: x\n"
) -> Workload:
    if settings.get("kind") == "mpijob":
        settings = {key: value for key, value in settings.items() if key != "secret_environment"}
    cluster = KubernetesCluster.model_validate_json(json.dumps(settings), strict=True)
    job = Job.of(Path("c.yaml"), [], nodes=nodes, gpus_per_node=gpus)
    return Workload("long-documents", job, cluster, config)


def keys(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all keys that a schema knows."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not path or path[-1] not in FREE_MAPS:
                yield (*path, key)
            yield from keys(inner, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from keys(inner, (*path, number))


def misspelt(made: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    changed = copy.deepcopy(made)
    place: Any = changed
    for step in path[:-1]:
        place = place[step]
    place[f"{path[-1]}s"] = place.pop(path[-1])
    return changed


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_schemas_take_the_manifests_and_no_misspelt_key(kind: str) -> None:
    schemas = pytest.importorskip("kubernetes_schemas")
    pytest.importorskip("kubernetes_validate")
    pytest.importorskip("kubeflow_trainer_api")
    pytest.importorskip("kubeflow.training")
    for settings in ({}, EVERYTHING):
        for nodes, gpus in ((1, 0), (3, 8)):
            objects = manifests(workload({**settings, "kind": kind}, nodes=nodes, gpus=gpus))
            for made in objects:
                assert schemas.problems(made) == []
    # The last ones hold every key that the launcher can write.
    missed = [
        (made["kind"], path)
        for made in objects
        for path in keys(made)
        if not schemas.problems(misspelt(made, path))
    ]
    assert missed == []


@pytest.mark.parametrize("kind", KINDS)
def test_yaml_readers_see_the_same_objects(kind: str) -> None:
    objects = manifests(workload({**EVERYTHING, "kind": kind}))
    text = to_manifest(objects)
    assert list(yaml.safe_load_all(text)) == objects
    assert "&id" not in text, "references are beyond some readers"


def test_the_job_comes_last_and_all_else_has_names_of_its_own() -> None:
    for kind in KINDS:
        made = manifests(workload({"kind": kind}))
        assert made[-1]["kind"].lower() == kind
        names = [(item["kind"], item["metadata"]["name"]) for item in made]
        assert len(set(names)) == len(names)
        assert ("ConfigMap", "long-documents-config") not in names, "the MPI Operator's own"


def pods_of(kind: str, **settings: Any) -> dict[str, Any]:
    """The template of the pods that compute."""
    made = manifests(workload({**EVERYTHING, "kind": kind, **settings}))[-2:]
    specification = made[-1]["spec"]
    if kind == "trainjob":
        specification = made[0]["spec"]["template"]["spec"]
    if kind in ("trainjob", "jobset"):
        group = specification["replicatedJobs"][0]
        return dict(group["template"]["spec"]["template"])
    name = "mpiReplicaSpecs" if kind == "mpijob" else "pytorchReplicaSpecs"
    return dict(specification[name]["Worker"]["template"])


@pytest.mark.parametrize("kind", KINDS)
def test_pods_have_what_was_asked_for(kind: str) -> None:
    pod = pods_of(kind)["spec"]
    (container,) = pod["containers"]
    assert container["image"] == EVERYTHING["image"]
    assert container["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": "8"}
    assert pod["nodeSelector"] == EVERYTHING["node_selector"]
    assert pod["terminationGracePeriodSeconds"] == 300
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    memory = volumes[mounts["/dev/shm"]["name"]]["emptyDir"]
    assert memory == {"medium": "Memory", "sizeLimit": "8Gi"}
    assert mounts["/etc/spade"]["readOnly"]
    assert volumes[mounts["/runs"]["name"]] == {
        "name": mounts["/runs"]["name"],
        "persistentVolumeClaim": {"claimName": "runs"},
    }
    assert mounts["/data"]["readOnly"]
    assert not any(mounts["/old"].get(word) for word in ("readOnly", "subPath"))
    assert not pods_of(kind, shared_memory_gib=None)["spec"]["volumes"][1].get("emptyDir")


@pytest.mark.parametrize("kind", ["trainjob", "jobset"])
def test_ends_of_pods_mean_what_they_mean_elsewhere(kind: str) -> None:
    made = manifests(workload({"kind": kind}, nodes=3))
    holder = made[1]["spec"] if kind == "jobset" else made[1]["spec"]["template"]["spec"]
    job = holder["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (3, 3, "Indexed")
    assert holder["failurePolicy"]["maxRestarts"] == 3, "failed: so many times"
    assert outcome(job, exit_code=0) == "done"
    assert outcome(job, exit_code=75) == "made again"
    assert outcome(job, exit_code=137, disrupted=True) == "made again"
    assert outcome(job, exit_code=2) == "PodFailurePolicy"
    assert outcome(job, exit_code=1) == outcome(job, exit_code=137) == "BackoffLimitExceeded"
    (rule,) = holder["failurePolicy"]["rules"]
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"], "bad usage: never again"
    assert rule["action"] == "FailJobSet"


def outcome(job: dict[str, Any], *, exit_code: int, disrupted: bool = False) -> str:
    """What the Job controller does with a pod that ended so, as its documentation has it."""
    if exit_code == 0:
        return "done"
    for rule in job["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        conditions = [item["type"] for item in rule.get("onPodConditions", [])]
        matched = exit_code in codes["values"] if codes else "DisruptionTarget" in conditions
        if matched and (codes or disrupted):
            return {"Ignore": "made again", "FailJob": "PodFailurePolicy"}[rule["action"]]
    assert job["backoffLimit"] == 0
    return "BackoffLimitExceeded"


def test_nodes_are_told_their_place_and_where_they_meet() -> None:
    for kind, variable, master in (
        ("jobset", "JOB_COMPLETION_INDEX", "long-documents-node-0-0.long-documents"),
        ("trainjob", "JOB_COMPLETION_INDEX", "long-documents-node-0-0.long-documents"),
        ("pytorchjob", "RANK", "long-documents-master-0"),
    ):
        command = pods_of(kind)["spec"]["containers"][0]["command"]
        assert command[:3] == ["python", "-m", "launch.clusters.node"]
        assert command[-1] == "/etc/spade/config.yaml"
        assert command[-2] == "--network-interface=eth0"
        options = dict(zip(command[3:-2:2], command[4:-2:2], strict=True))
        assert options == {
            "--nodes": "3",
            "--node-rank-variable": variable,
            "--processes": "8",
            "--master-address": master,
            "--master-port": "29400",
        }


def test_mpi_ranks_get_their_variables_from_the_launcher() -> None:
    made = manifests(workload({**EVERYTHING, "kind": "mpijob"}))
    replicas = made[-1]["spec"]["mpiReplicaSpecs"]
    (container,) = replicas["Launcher"]["template"]["spec"]["containers"]
    command = container["command"]
    assert command[3:6] == ["launch", "mpi", "/etc/spade/config.yaml"]
    options = dict(zip(command[6::2], command[7::2], strict=True))
    assert options.pop("--cluster") == "/etc/spade/mpi.yaml"
    assert options == {
        "--hostfile": "/etc/mpi/hostfile",
        "--nodes": "3",
        "--processes": "8",
        "--gpus-per-node": "8",
        "--max-restarts": "3",
    }
    assert "resources" not in container, "no rank runs beside mpirun"
    path = Path(command[command.index("--cluster") + 1])
    described = MpiCluster.model_validate_json(
        json.dumps(yaml.safe_load(made[0]["data"][path.name])), strict=True
    )
    assert described.nodes.environment["PRICE"] == "$(HOME) $$ y", "no pod expands it there"
    assert described.nodes.environment["OMP_NUM_THREADS"] == "2"
    assert str(described.nodes.working_folder) == "/runs/here"


def test_threads_follow_from_the_cpus_of_a_pod() -> None:
    def threads(cpus: str) -> list[str]:
        variables = pods_of("jobset", cpus=cpus)["spec"]["containers"][0]["env"]
        return [item["value"] for item in variables if item["name"] == "OMP_NUM_THREADS"]

    assert threads("16") == ["2"]
    assert threads("500m") == threads("4") == ["1"]


def test_the_example_describes_a_cluster() -> None:
    cluster = load_cluster(EXAMPLE, KubernetesCluster)
    assert cluster.kind == "trainjob"
    assert cluster.volume_of("/runs/a") is cluster.volumes[0]
