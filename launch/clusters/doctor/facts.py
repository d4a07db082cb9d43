"""What is true of one machine, gathered in a second or two and without importing torch."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.clusters.doctor.gpus import Gpu, survey_gpus
from launch.clusters.versions import code_fingerprint, installed_version
from launch.doctor import memory_bytes
from launch.local import number_of_cores

PACKAGES = (
    *("torch", "deepspeed", "numpy", "pydantic", "sentencepiece", "webdataset", "safetensors"),
    *("xxhash", "psutil", "pyarrow", "tensorboard"),
)
_SHARED_MEMORY = Path("/dev/shm")
_FOLDER_SECONDS = 10.0


@dataclass(frozen=True)
class FolderFacts:
    """A folder that a run writes to."""

    path: str
    problem: str = ""
    """Why nothing can be written there; "" where it can."""
    free_bytes: int = 0


@dataclass(frozen=True)
class NodeFacts:
    """One machine."""

    host: str
    unix_seconds: float
    python: str
    executable: str
    code: str
    """A fingerprint of our own source files: a commit would not tell edited files apart."""
    packages: dict[str, str]
    """Versions by name; "" where not installed."""
    cores: int
    memory_bytes: int
    folder: FolderFacts
    temporary: FolderFacts
    shared_memory_free_bytes: int | None
    """Room in /dev/shm; none where the system has none."""
    gpus: tuple[Gpu, ...] = ()
    gpu_problem: str = ""

    @classmethod
    def of_dict(cls, values: Mapping[str, Any]) -> NodeFacts:
        """Read what :func:`dataclasses.asdict` wrote, on a machine that may run other code.

        Raises:
            ValueError: If a field is missing or unknown.
        """
        try:
            return cls(
                **{
                    **values,
                    "folder": FolderFacts(**values["folder"]),
                    "temporary": FolderFacts(**values["temporary"]),
                    "gpus": tuple(Gpu(**gpu) for gpu in values["gpus"]),
                }
            )
        except (TypeError, KeyError) as error:
            raise ValueError(f"facts of other code than this machine's: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)


def gather(folder: Path) -> NodeFacts:
    """Look at this machine.

    Args:
        folder: Where the run writes.
    """
    survey = survey_gpus()
    return NodeFacts(
        host=platform.node(),
        unix_seconds=time.time(),
        python=platform.python_version(),
        executable=sys.executable,
        code=code_fingerprint(),
        packages={name: installed_version(name) for name in PACKAGES},
        cores=number_of_cores(),
        memory_bytes=memory_bytes(),
        folder=examine_folder(folder),
        temporary=examine_folder(Path(tempfile.gettempdir())),
        shared_memory_free_bytes=_shared_memory_free_bytes(),
        gpus=survey.gpus,
        gpu_problem=survey.problem,
    )


def examine_folder(folder: Path, limit_seconds: float = _FOLDER_SECONDS) -> FolderFacts:
    """Write a small file and remove it again.

    Args:
        folder: Where.
        limit_seconds: A file server that is gone blocks for ever: the folder then counts as lost.
    """
    found: list[FolderFacts] = []
    thread = threading.Thread(target=lambda: found.append(_try_folder(folder)), daemon=True)
    thread.start()
    thread.join(limit_seconds)
    return found[0] if found else FolderFacts(str(folder), f"no answer in {limit_seconds:.0f} s")


def _try_folder(folder: Path) -> FolderFacts:
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".spade-doctor-") as stream:
            stream.write(bytes(4096))
            stream.flush()
            os.fsync(stream.fileno())
        return FolderFacts(str(folder), free_bytes=shutil.disk_usage(folder).free)
    except OSError as error:
        return FolderFacts(str(folder), error.strerror or str(error))


def _shared_memory_free_bytes() -> int | None:
    try:
        return shutil.disk_usage(_SHARED_MEMORY).free
    except FileNotFoundError:
        return None
