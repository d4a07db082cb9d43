"""Descriptions of Kubernetes clusters: what cannot work is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.clusters.kubernetes.settings import KubernetesCluster
from launch.clusters.settings import load_cluster
from pretrain.errors import ConfigError


def load(tmp_path: Path, settings: dict[str, Any]) -> KubernetesCluster:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return load_cluster(path, KubernetesCluster)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"nodes": {"python": "/usr/bin/python3"}}, "nodes.python has no meaning in a pod; put"),
        ({"nodes": {"modules": ["cuda"]}}, "nodes.modules has no meaning in a pod; install"),
        ({"nodes": {"source": ["x.sh"]}}, "nodes.source has no meaning in a pod; set"),
        ({"nodes": {"working_folder": "here"}}, "relative"),
        ({"nodes": {"environment": {"RANK": "0"}}}, "RANK is set by the launcher"),
        ({"nodes": {"environment": {"PET_NNODES": "2"}}}, "PET_NNODES is set by the launcher"),
        ({"nodes": {"environment": {"A": "x\0y"}}}, "NUL"),
        ({"nodes": {"environment": {"A B": "x"}}}, "nodes.environment"),
        ({"volumes": [{"mount_path": "/a"}]}, "needs one of claim, csi and nfs"),
        (
            {"volumes": [{"mount_path": "/a", "claim": "a", "nfs": {"server": "s", "path": "/"}}]},
            "needs one of claim, csi and nfs",
        ),
        ({"volumes": [{"mount_path": "a", "claim": "a"}]}, "absolute path"),
        ({"volumes": [{"mount_path": "/a:b", "claim": "a"}]}, "absolute path"),
        ({"volumes": [{"mount_path": "/a/../b", "claim": "a"}]}, "absolute path"),
        ({"volumes": [{"mount_path": "/dev/shm/x", "claim": "a"}]}, "mounts something itself"),
        ({"volumes": [{"mount_path": "/etc/spade", "claim": "a"}]}, "mounts something itself"),
        ({"volumes": [{"mount_path": "/a", "claim": "Not A Name"}]}, "volumes.0.claim"),
        ({"volumes": [{"mount_path": "/a", "claim": "a", "sub_path": "../b"}]}, "relative path"),
        ({"volumes": [{"mount_path": "/a", "claim": "a"}] * 2}, "two are mounted at /a"),
        ({"kind": "mpijob", "user": 0}, "Open MPI refuses root"),
        ({"kind": "mpijob", "secret_environment": ["keys"]}, "reaches no rank under mpijob"),
        ({"kind": "pod"}, "kind is"),
        ({"namespace": "Team A"}, "namespace is"),
        ({"image": "a\nb"}, "control character"),
        ({"memory": "lots"}, "memory is"),
        ({"labels": {"team": "a b"}}, "no value of a label"),
        ({"labels": {"a b": "c"}}, "no name of a label"),
        ({"node_selector": {"gpu": "x\ny"}}, "no value of a label"),
        ({"queu": "research"}, "did you mean queue?"),
        ({"master_port": 80}, "master_port is 80"),
        ({"shared_memory_gib": 0}, "shared_memory_gib is 0"),
    ],
)
def test_what_cannot_work_is_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError) as failure:
        load(tmp_path, settings)
    message = str(failure.value)
    assert complaint in message
    assert message.startswith(str(tmp_path / "cluster.yaml"))
    assert len(message.splitlines()) == 1


def test_the_innermost_volume_holds_a_path(tmp_path: Path) -> None:
    cluster = load(
        tmp_path,
        {
            "volumes": [
                {"mount_path": "/data", "claim": "a"},
                {"mount_path": "/data/runs", "claim": "b"},
            ],
            "nodes": {"working_folder": "/data/runs/team"},
        },
    )
    outer, inner = cluster.volumes
    assert cluster.volume_of("runs/x") is inner
    assert cluster.volume_of("/data/runsx") is outer
    assert cluster.volume_of("/database") is None


def test_nothing_has_to_be_said(tmp_path: Path) -> None:
    cluster = load_cluster(None, KubernetesCluster)
    assert (cluster.kind, cluster.namespace) == ("trainjob", "default")
    assert load(tmp_path, {"kind": "jobset"}).kind == "jobset"
