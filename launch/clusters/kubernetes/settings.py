"""What a description of a Kubernetes cluster says."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from launch.clusters.settings import ClusterSettings, Word
from pretrain.section import NonNegative, Positive, Section

_DNS_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
_DNS_NAME = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
_QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
_QUALIFIED_NAME = re.compile(
    r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")

CONFIG_FOLDER = PurePosixPath("/etc/spade")
SHARED_MEMORY_FOLDER = PurePosixPath("/dev/shm")
# Set by us or by the operators: a second value would be refused, or win silently.
_TAKEN_VARIABLES = {"JOB_COMPLETION_INDEX", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
# What prepares a shell on a machine; a pod's image is prepared already.
_WITHOUT_MEANING = {
    "python": "put the interpreter first in PATH in the image",
    "modules": "install what is needed into the image",
    "source": "set nodes.environment, or ENV in the image",
}


def _mount_folder(text: str) -> str:
    path = PurePosixPath(text)
    # Kubernetes takes the part behind a colon for something else.
    if not path.is_absolute() or ".." in path.parts or ":" in text or path == PurePosixPath("/"):
        raise ValueError(f"{text!r} is no place for a volume; give an absolute path without ..")
    if any(_is_within(path, taken) for taken in (CONFIG_FOLDER, SHARED_MEMORY_FOLDER)):
        raise ValueError(f"{text!r} is where the launcher mounts something itself; choose another")
    return str(path)


def _is_within(path: PurePosixPath, folder: PurePosixPath) -> bool:
    return path == folder or folder in path.parents


def _inner_folder(text: str) -> str:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{text!r} is no folder inside a volume; give a relative path without ..")
    return text


def _labels(values: dict[str, str]) -> dict[str, str]:
    for name, value in _names(values).items():
        if _LABEL_VALUE.fullmatch(value) is None:
            raise ValueError(
                f"{name}: {value!r} is no value of a label; use at most 63 letters, digits, -_."
            )
    return values


def _names(values: dict[str, str]) -> dict[str, str]:
    for name in values:
        if _QUALIFIED_NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} is no name of a label or an annotation; write domain/name")
    return values


Label = Annotated[str, Field(pattern=_DNS_LABEL)]
"""A name as DNS takes it: lower case, digits and dashes, at most 63."""
Name = Annotated[str, Field(pattern=_DNS_NAME)]
"""As a label, dots allowed, at most 253."""
Quantity = Annotated[str, Field(pattern=_QUANTITY)]
"""An amount as Kubernetes writes it: `500m`, `8`, `64Gi`."""
MountFolder = Annotated[Word, AfterValidator(_mount_folder)]
InnerFolder = Annotated[Word, AfterValidator(_inner_folder)]
Labels = Annotated[dict[str, str], AfterValidator(_labels)]
Annotations = Annotated[dict[str, str], AfterValidator(_names)]


class CsiSource(Section):
    """A volume that a CSI driver mounts for as long as the pod lives, e.g. a bucket."""

    driver: Name
    """E.g. `gcsfuse.csi.storage.gke.io`."""
    attributes: dict[str, str] = Field(default_factory=dict)
    """What the driver wants to know, e.g. `bucketName`."""
    secret: Name | None = None
    """Secret that the driver reads its key from."""


class NfsSource(Section):
    """A folder of an NFS server."""

    server: Word
    """Its name or address."""
    path: Word
    """Absolute, on the server."""


class Volume(Section):
    """A folder that all pods see: a claim, a CSI volume or an NFS share, exactly one of them."""

    mount_path: MountFolder
    """Where the pods see it; the run's paths begin there."""
    claim: Name | None = None
    """Name of a PersistentVolumeClaim, ReadWriteMany where there are several nodes. Mountpoint for
    S3 and most shared file systems are used this way."""
    csi: CsiSource | None = None
    """An inline volume of a CSI driver, e.g. Cloud Storage FUSE."""
    nfs: NfsSource | None = None
    """A folder of an NFS server."""
    sub_path: InnerFolder | None = None
    """Only this folder inside the volume."""
    read_only: bool = False
    """For data; the run's folder must be writable."""

    @model_validator(mode="after")
    def _has_one_source(self) -> Volume:
        if sum(source is not None for source in (self.claim, self.csi, self.nfs)) != 1:
            raise ValueError(f"the volume at {self.mount_path} needs one of claim, csi and nfs")
        return self


class Toleration(Section):
    """A taint of nodes that the pods put up with."""

    key: Word
    """The taint's name, e.g. `nvidia.com/gpu`."""
    value: str | None = None
    """Its value; none takes any."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """None takes all effects."""


class KubernetesCluster(ClusterSettings):
    """A Kubernetes cluster, and how pods are to look there."""

    kind: Literal["trainjob", "pytorchjob", "mpijob", "jobset"] = "trainjob"
    """Who starts the pods: Kubeflow Trainer 2 (`trainjob`), the older Training Operator
    (`pytorchjob`), the MPI Operator (`mpijob`), or JobSet alone (`jobset`)."""
    context: Word | None = None
    """Of kubectl's configuration; none is the current one."""
    namespace: Label = "default"
    """Where everything is made."""
    image: Word = "spade-pretrain:latest"
    """What the pods run, as `launch/containers/Dockerfile` builds it: `python` on its PATH has the
    package."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When a node fetches the image."""
    image_pull_secrets: tuple[Name, ...] = ()
    """Secrets with the registry's keys."""
    volumes: tuple[Volume, ...] = ()
    """Where the data and the run's folder lie."""
    volumes_here: bool = False
    """Whether this machine sees the volumes under the same paths: then data and checkpoint are
    checked before anything is submitted."""
    shared_memory_gib: Positive | None = 8
    """Size of /dev/shm, which loader processes and NCCL use; a container has 64 MB without. Counts
    as memory of the pod. None leaves it alone."""
    cpus: Quantity | None = None
    """CPU cores of each pod."""
    memory: Quantity | None = None
    """Memory of each pod."""
    gpu_resource: Word = "nvidia.com/gpu"
    """What the cluster calls a GPU."""
    node_selector: Labels = Field(default_factory=dict)
    """Labels a node must have."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints of nodes to put up with."""
    labels: Labels = Field(default_factory=dict)
    """Of everything that is made."""
    annotations: Annotations = Field(default_factory=dict)
    """Of the pods, e.g. `gke-gcsfuse/volumes: "true"`."""
    secret_environment: tuple[Name, ...] = ()
    """Secrets whose entries become variables of the ranks, e.g. keys of an object store."""
    service_account: Name | None = None
    """Whom the pods act as."""
    priority_class: Name | None = None
    """Of the pods."""
    queue: Label | None = None
    """Kueue's LocalQueue that the job waits in."""
    user: NonNegative | None = 1000
    """User and group id that the pods run as, and that volumes are made writable for; 1000 is the
    image's. None leaves it to image and cluster."""
    termination_grace_seconds: Positive = 300
    """How long a pod may take to save when it is evicted."""
    keep_finished_seconds: NonNegative | None = None
    """After so long a finished job is removed with its pods and their output; none keeps it."""
    master_port: Annotated[int, Field(gt=1023, lt=65536)] = 29400
    """Where the ranks meet on the first pod."""

    @model_validator(mode="after")
    def _fits_pods(self) -> KubernetesCluster:
        for name, remedy in _WITHOUT_MEANING.items():
            if name in self.nodes.model_fields_set:
                raise ValueError(f"nodes.{name} has no meaning in a pod; {remedy}")
        for name, value in self.nodes.environment.items():
            if "\0" in value:
                raise ValueError(f"nodes.environment.{name} holds a NUL; leave it out")
            if name in _TAKEN_VARIABLES or name.startswith("PET_"):
                raise ValueError(f"nodes.environment.{name} is set by the launcher; leave it out")
        folder = self.nodes.working_folder
        if folder is not None and not PurePosixPath(folder).is_absolute():
            raise ValueError(
                f"nodes.working_folder {folder} is relative; give an absolute path in the pods"
            )
        places = [volume.mount_path for volume in self.volumes]
        for place in places:
            if places.count(place) > 1:
                raise ValueError(f"volumes: two are mounted at {place}; choose another mount_path")
        if self.kind == "mpijob" and self.user == 0:
            raise ValueError("user 0 with kind mpijob: Open MPI refuses root; use 1000")
        if self.kind == "mpijob" and self.secret_environment:
            raise ValueError(
                "secret_environment reaches no rank under mpijob, which sshd starts; use another "
                "kind, or a service_account"
            )
        return self

    def in_pod(self, path: Path | str) -> PurePosixPath:
        """A path of the run as the pods see it."""
        return PurePosixPath(self.nodes.working_folder or "/") / str(path)

    def volume_of(self, path: Path | str) -> Volume | None:
        """The volume on which a path of the run lies; the innermost one, none if it has none."""
        place = self.in_pod(path)
        holding = [
            volume for volume in self.volumes if _is_within(place, PurePosixPath(volume.mount_path))
        ]
        return max(holding, key=lambda volume: len(volume.mount_path), default=None)
