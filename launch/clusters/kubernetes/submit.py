"""Hands manifests to kubectl."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Sequence

from launch.clusters.kubernetes.settings import KubernetesCluster
from launch.failures import CommandError

_RESOURCES = {
    "trainjob": "trainjob.trainer.kubeflow.org",
    "pytorchjob": "pytorchjob.kubeflow.org",
    "mpijob": "mpijob.kubeflow.org",
    "jobset": "jobset.jobset.x-k8s.io",
}
_POD_LABELS = {
    "trainjob": "jobset.sigs.k8s.io/jobset-name",
    "pytorchjob": "training.kubeflow.org/job-name",
    "mpijob": "training.kubeflow.org/job-name",
    "jobset": "jobset.sigs.k8s.io/jobset-name",
}


def kubectl_command(cluster: KubernetesCluster, *words: str) -> list[str]:
    """Arguments of kubectl for this cluster and namespace."""
    context = [] if cluster.context is None else [f"--context={cluster.context}"]
    return ["kubectl", *context, f"--namespace={cluster.namespace}", *words]


def apply_manifest(cluster: KubernetesCluster, manifest: str) -> str:
    """Make or renew the objects of a manifest.

    Returns:
        What kubectl says, a line an object.

    Raises:
        CommandError: kubectl is missing or refuses.
    """
    if shutil.which("kubectl") is None:
        raise CommandError(
            "kubectl is not found; install it, or hand on what --dry-run prints: "
            "spade launch kubernetes … --dry-run > job.yaml"
        )
    command = kubectl_command(cluster, "apply", "--filename=-")
    result = subprocess.run(
        command, input=manifest, capture_output=True, text=True, errors="replace", check=False
    )
    if result.returncode:
        said = [line.strip() for line in result.stderr.splitlines() if line.strip()]
        reason = "\n".join(said) or f"exit code {result.returncode}"
        raise CommandError(f"kubectl: {reason}")
    return result.stdout.strip()


def following_commands(cluster: KubernetesCluster, name: str) -> Sequence[tuple[str, str]]:
    """What one does next with a submitted job: purpose and command."""
    resource = f"{_RESOURCES[cluster.kind]}/{name}"
    pods = f"--selector={_POD_LABELS[cluster.kind]}={name}"
    words = (
        ("watch", ("get", "pods", pods, "--watch")),
        ("output", ("logs", pods, "--follow", "--prefix", "--max-log-requests=64")),
        ("stop (it saves; launch again to go on)", ("delete", resource)),
    )
    return [(purpose, shlex.join(kubectl_command(cluster, *rest))) for purpose, rest in words]
