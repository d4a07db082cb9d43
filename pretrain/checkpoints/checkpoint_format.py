"""What a checkpoint is on disk, and how it is read: JSON and safetensors, nothing that executes.

``step-00001000/``::

    manifest.json            written last: step, shapes, and size and checksum of every other file
    config.yaml              the resolved configuration
    whole.safetensors        buffers and frozen parameters
    rank-00000.safetensors   what rank 0's optimizer held: `KIND/NAME` float32 vectors, and in the
                             header at which element of the flattened parameter each begins
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open

from pretrain.config import RunConfig
from pretrain.engine.training_state import WEIGHT
from pretrain.errors import CheckpointError
from pretrain.run_folder import RunFolder
from pretrain.yaml_text import read_yaml

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
CONFIG = "config.yaml"
WHOLE = "whole.safetensors"
PARTIAL_SUFFIX = ".partial"
_FOLDER_NAME = re.compile(r"^step-(\d{8,})$")


def folder_name(step: int) -> str:
    """``step-00001000`` for 1000."""
    return f"step-{step:08d}"


def rank_file(rank: int) -> str:
    """``rank-00000.safetensors`` for 0."""
    return f"rank-{rank:05d}.safetensors"


def file_checksum(path: Path) -> str:
    """xxh3_128 of a file, in hexadecimal.

    Raises:
        OSError: If the file cannot be read.
    """
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class CheckpointInfo:
    """One folder below ``checkpoints/``."""

    step: int
    path: Path
    complete: bool
    """Whether every file is there with the size the manifest states; checksums are not read."""
    size_bytes: int
    problem: str | None
    """What is wrong, if it is not complete."""


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of one checkpoint.

    Raises:
        CheckpointError: If it is missing, not JSON, or of another format version.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no {MANIFEST}: not a complete checkpoint") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / MANIFEST}: unreadable: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path / MANIFEST}: not a checkpoint of format version {FORMAT_VERSION}"
        )
    if not _plausible(manifest):
        raise CheckpointError(f"{path / MANIFEST}: lacks files, step or shapes: damaged")
    return manifest


def size_problems(path: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Files that are missing or have another size than the manifest states."""
    problems = []
    for name, facts in manifest["files"].items():
        file = path / name
        if not file.is_file():
            problems.append(f"{file}: missing")
        elif file.stat().st_size != facts["size_bytes"]:
            problems.append(
                f"{file}: {file.stat().st_size} bytes, the manifest says {facts['size_bytes']}"
            )
    return problems


def verify_checkpoint(path: Path) -> list[str]:
    """Read every byte of a checkpoint and compare it with its manifest.

    Returns:
        What is wrong, one line each; empty if the checkpoint is sound.
    """
    try:
        manifest = read_manifest(path)
    except CheckpointError as error:
        return [str(error)]
    problems = size_problems(path, manifest)
    if problems:
        return problems
    try:
        return [
            f"{path / name}: its checksum differs from the manifest's: the file is damaged"
            for name, facts in manifest["files"].items()
            if file_checksum(path / name) != facts["checksum"]
        ]
    except OSError as error:
        return [f"{path}: cannot be read: {error}"]


def list_checkpoints(run: Path) -> list[CheckpointInfo]:
    """All checkpoints of a run, oldest first, complete or not."""
    folder = RunFolder(run).checkpoints
    if not folder.is_dir():
        return []
    found = []
    for path in sorted(folder.iterdir()):
        match = _FOLDER_NAME.match(path.name)
        if match is None or not path.is_dir():
            continue
        try:
            problems = size_problems(path, read_manifest(path))
        except CheckpointError as error:
            problems = [str(error)]
        size_bytes = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
        found.append(
            CheckpointInfo(
                step=int(match.group(1)),
                path=path,
                complete=not problems,
                size_bytes=size_bytes,
                problem=problems[0] if problems else None,
            )
        )
    return sorted(found, key=lambda info: info.step)


def latest_complete(run: Path) -> Path:
    """The newest complete checkpoint of a run.

    Raises:
        CheckpointError: If there is none.
    """
    complete = [info for info in list_checkpoints(run) if info.complete]
    if not complete:
        raise CheckpointError(f"{run}: holds no complete checkpoint; train with `spade pretrain`")
    return complete[-1].path


def load_run_config(path: Path) -> RunConfig:
    """The configuration a checkpoint was written under.

    Raises:
        CheckpointError: If the file is missing or no longer valid.
    """
    try:
        return RunConfig.from_dict(read_yaml(path / CONFIG), str(path / CONFIG))
    except ValueError as error:
        raise CheckpointError(str(error).splitlines()[0]) from None


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The full float32 state dict of the model in a checkpoint, tied names included.

    The caller verifies the checkpoint first (:func:`verify_checkpoint`).

    Raises:
        CheckpointError: If the checkpoint cannot be read or has gaps.
    """
    with CheckpointReader(path) as reader:
        weights = {name: reader.read_full(name) for name in reader.names}
        for alias, name in reader.manifest["tied"].items():
            weights[alias] = weights[name]
        return weights


class CheckpointReader:
    """Random access to the numbers of one checkpoint, by parameter name.

    Use as a context manager; the files stay mapped while it is open.

    Raises:
        CheckpointError: If a file is missing or is not safetensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_manifest(path)
        self._pieces: dict[str, list[tuple[int, int, Any]]] = {}
        try:
            self._whole: Any = safe_open(str(path / WHOLE), framework="pt")
            self._ranks: list[Any] = [
                safe_open(str(path / rank_file(rank)), framework="pt")
                for rank in range(self.manifest["world_size"])
            ]
            for file in self._ranks:
                for name, (start, length) in json.loads(file.metadata()["fragments"]).items():
                    self._pieces.setdefault(name, []).append((start, length, file))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from None
        for pieces in self._pieces.values():
            pieces.sort(key=lambda piece: piece[0])

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pieces.clear()
        self._ranks.clear()
        del self._whole

    @property
    def names(self) -> list[str]:
        """Trained parameters, then buffers and frozen parameters."""
        return [*self.manifest["parameters"], *self._whole.keys()]

    def read_full(self, name: str) -> torch.Tensor:
        """One whole parameter or buffer in its own shape.

        Raises:
            CheckpointError: If the checkpoint does not hold all of it.
        """
        shape = self.manifest["parameters"].get(name)
        if shape is None:
            if name not in self._whole.keys():  # noqa: SIM118 - safe_open is no mapping
                raise CheckpointError(f"{self.path}: holds no tensor {name}: another model?")
            whole: torch.Tensor = self._whole.get_tensor(name)
            return whole
        length = 1
        for size in shape:
            length *= size
        return self.read_slice(WEIGHT, name, 0, length).reshape(shape)

    def read_slice(self, kind: str, name: str, start: int, length: int) -> torch.Tensor:
        """Elements ``[start, start + length)`` of a flattened parameter or of one of its moments.

        Raises:
            CheckpointError: If an element is in no rank's file.
        """
        result = torch.empty(length, dtype=torch.float32)
        filled = 0
        for piece_start, piece_length, file in self._pieces.get(name, []):
            low = max(start, piece_start)
            high = min(start + length, piece_start + piece_length)
            if low >= high:
                continue
            values = file.get_slice(f"{kind}/{name}")[low - piece_start : high - piece_start]
            result[low - start : high - start] = values
            filled += high - low
        if filled != length:
            raise CheckpointError(
                f"{self.path}: holds {filled} of {length} elements of {kind} {name}: "
                "damaged, or of another model"
            )
        return result


def _plausible(manifest: Mapping[str, Any]) -> bool:
    files = manifest.get("files")
    return (
        isinstance(manifest.get("step"), int)
        and isinstance(manifest.get("world_size"), int)
        and isinstance(manifest.get("parameters"), dict)
        and isinstance(manifest.get("tied"), dict)
        and isinstance(files, dict)
        and all(
            "/" not in name and isinstance(facts, dict) and {"size_bytes", "checksum"} <= set(facts)
            for name, facts in files.items()
        )
    )
