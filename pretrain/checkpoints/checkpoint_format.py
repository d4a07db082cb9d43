"""What a checkpoint is on disk: JSON, YAML and safetensors, nothing that executes.

``step-00001000/``::

    manifest.json            written last: step, shapes, and size and checksum of every other file
    config.yaml              the resolved configuration
    whole.safetensors        buffers, frozen parameters, and states that are no slices
    rank-00000.safetensors   what rank 0 held: `KIND/NAME` float32 vectors, and in the header at
                             which element of the flattened parameter each begins

Beside them lies ``latest``, a link for people to the newest one; nothing here relies on it. A name
that ends in ``.partial`` is being written, in ``.removed`` being removed, and in ``.replaced``
about to make room for another checkpoint of its step.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pretrain.checkpoints.strict_json import parse_json
from pretrain.config import RunConfig
from pretrain.errors import CheckpointError
from pretrain.run_folder import RunFolder
from pretrain.yaml_text import read_yaml

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
CONFIG = "config.yaml"
WHOLE = "whole.safetensors"
PARTIAL_SUFFIX = ".partial"
REMOVED_SUFFIX = ".removed"
REPLACED_SUFFIX = ".replaced"
CheckpointKind = Literal["scheduled", "stop", "final"]

_FOLDER_NAME = re.compile(r"^step-(\d{8,18})$", re.ASCII)
_LARGEST_MANIFEST_BYTES = 1 << 26
_Count = Annotated[int, Field(ge=0, lt=1 << 62)]


class _File(BaseModel):
    """Facts of one file."""

    model_config = ConfigDict(strict=True, extra="forbid")
    size_bytes: _Count
    checksum: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class _Manifest(BaseModel):
    """What every manifest states; the run adds plain facts of its own."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    format_version: Literal[2]
    kind: CheckpointKind
    step: _Count
    sample_index: _Count
    tokens_seen: _Count
    updates: _Count
    heldout_loss: float | None
    created_unix_seconds: float
    world_size: Annotated[int, Field(gt=0, lt=1 << 31)]
    fingerprints: dict[str, str]
    quarantined: list[dict[str, Any]]
    parameters: dict[str, Annotated[list[_Count], Field(max_length=64)]]
    tied: dict[str, str]
    files: dict[str, _File]


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
    kind: CheckpointKind | None = None
    """Why it was written; none where the manifest cannot be read."""
    heldout_loss: float | None = None
    """Held-out loss at its step, if that was evaluated."""


def folder_name(step: int) -> str:
    """``step-00001000`` for 1000."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """1000 for ``step-00001000``; none for any other name."""
    match = _FOLDER_NAME.match(name)
    return int(match.group(1)) if match and folder_name(int(match.group(1))) == name else None


def rank_file(rank: int) -> str:
    """``rank-00000.safetensors`` for 0."""
    return f"rank-{rank:05d}.safetensors"


def file_checksum(path: Path) -> str:
    """xxh3_128 of a file, in hexadecimal.

    Raises:
        OSError: If the file cannot be read.
    """
    digest = xxhash.xxh3_128()
    block = bytearray(1 << 22)
    view = memoryview(block)
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(block):
            digest.update(view[:count])
    return digest.hexdigest()


def manifest_problem(manifest: Any) -> str | None:
    """Why a manifest describes no checkpoint, in one line; none if it does."""
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        return f"not a checkpoint of format version {FORMAT_VERSION}"
    try:
        checked = _Manifest.model_validate(manifest)
    except ValidationError as error:
        detail = error.errors()[0]
        place = ".".join(str(part) for part in detail["loc"])
        return f"{place!r}: {detail['msg']}: damaged"
    # Lengths first: a damaged world size must not make a list of its length.
    named = len(checked.files) == checked.world_size + 2 and set(checked.files) == {
        CONFIG,
        WHOLE,
        *(rank_file(rank) for rank in range(checked.world_size)),
    }
    return None if named else f"does not name the files of {checked.world_size} ranks: damaged"


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of one checkpoint.

    Raises:
        CheckpointError: If it is missing, not JSON, or of another format version.
    """
    file = path / MANIFEST
    try:
        if file.stat().st_size > _LARGEST_MANIFEST_BYTES:
            raise CheckpointError(f"{file}: too large for a manifest: damaged")
        manifest = parse_json(file.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no {MANIFEST}: not a complete checkpoint") from None
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: unreadable: {error}") from None
    problem = manifest_problem(manifest)
    if problem is not None:
        raise CheckpointError(f"{file}: {problem}")
    step = step_of(path.name)
    if step is not None and step != manifest["step"]:
        raise CheckpointError(f"{file}: states step {manifest['step']}: of another checkpoint")
    return dict(manifest)


def checkpoint_facts(path: Path) -> dict[str, Any]:
    """A checkpoint's manifest without the list of tensors: what a model card states.

    Raises:
        CheckpointError: If the manifest is missing or damaged.
    """
    manifest = read_manifest(path)
    return {key: value for key, value in manifest.items() if key not in ("parameters", "files")}


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


def checksum_problems(
    path: Path, manifest: Mapping[str, Any], share: int, shares: int
) -> list[str]:
    """Files whose bytes differ from those that were written.

    Args:
        path: The checkpoint.
        manifest: Its manifest.
        share: Which part of the files to read, from 0.
        shares: Number of parts.
    """
    problems = []
    for name in sorted(manifest["files"])[share::shares]:
        try:
            if file_checksum(path / name) != manifest["files"][name]["checksum"]:
                problems.append(
                    f"{path / name}: its checksum differs from the manifest's: the file is damaged"
                )
        except OSError as error:
            problems.append(f"{path / name}: cannot be read: {error.strerror}")
    return problems


def verify_checkpoint(path: Path) -> list[str]:
    """Read every byte of a checkpoint and compare it with its manifest.

    Returns:
        What is wrong, one line each; empty if the checkpoint is sound.
    """
    try:
        manifest = read_manifest(path)
        return size_problems(path, manifest) or checksum_problems(path, manifest, 0, 1)
    except CheckpointError as error:
        return [str(error)]
    except OSError as error:
        return [f"{path}: cannot be read: {error}"]


def list_checkpoints(run: Path) -> list[CheckpointInfo]:
    """All checkpoints of a run, oldest first, complete or not."""
    folder = RunFolder(run).checkpoints
    if not folder.is_dir():
        return []
    found = [
        _info(step, path)
        for path in folder.iterdir()
        if (step := step_of(path.name)) is not None and path.is_dir()
    ]
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


def _info(step: int, path: Path) -> CheckpointInfo:
    manifest: dict[str, Any] = {}
    size_bytes = 0
    try:
        size_bytes = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
        manifest = read_manifest(path)
        problems = size_problems(path, manifest)
    except CheckpointError as error:
        problems = [str(error)]
    except OSError as error:  # gone meanwhile: another process removes old checkpoints
        problems = [f"{path}: cannot be read: {error.strerror}"]
    return CheckpointInfo(
        step=step,
        path=path,
        complete=not problems,
        size_bytes=size_bytes,
        problem=problems[0] if problems else None,
        kind=manifest.get("kind"),
        heldout_loss=manifest.get("heldout_loss"),
    )
