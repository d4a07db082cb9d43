"""Checking every byte of a data set, and naming all that is damaged."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from data_pipeline.errors import DataError
from data_pipeline.foreign.verification import text_shard_problems
from data_pipeline.progress import Progress, ProgressCallback
from data_pipeline.reading.shard_reader import document_problem
from data_pipeline.shards.manifest import Manifest, ShardInfo
from data_pipeline.shards.shard_index import ShardIndex, build_index, index_checksum
from data_pipeline.shards.tar_format import StoredDocument, document_key

# Beyond so many damaged documents of one shard, their number says enough.
_LISTED_DOCUMENTS = 20


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was written.

    Attributes:
        shard: File name of the shard.
        document: Key of the document, or None where it is the shard or its index.
        reason: What is wrong.
    """

    shard: str
    document: str | None
    reason: str

    def __str__(self) -> str:
        return f"{self.shard}: {self.document + ': ' if self.document else ''}{self.reason}"


@dataclass(frozen=True)
class VerifyReport:
    """What was checked and what was found.

    Attributes:
        folder: The data set.
        shards: Shards in the manifest.
        documents: Documents in the manifest.
        tokens: Ids in the manifest.
        damages: Everything that is wrong; empty where the data set is sound.
    """

    folder: Path
    shards: int
    documents: int
    tokens: int
    damages: tuple[Damage, ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.damages


def verify_dataset(folder: Path, progress: ProgressCallback | None = None) -> VerifyReport:
    """Reads every shard and compares it with its index and the manifest.

    Args:
        folder: The data set.
        progress: Told of the bytes read.

    Raises:
        DataError: If the manifest is missing or damaged, so that nothing is known to compare with.
    """
    folder = Path(folder)
    manifest = Manifest.load(folder)
    damages: list[Damage] = []
    total_bytes = sum(info.size_bytes for info in manifest.shards)
    done_bytes = 0
    for info in manifest.shards:
        damages += _verify_shard(folder, info, manifest)
        done_bytes += info.size_bytes
        if progress is not None:
            progress(Progress("verify shards", done_bytes, total_bytes, "bytes"))
    return VerifyReport(
        folder=folder,
        shards=len(manifest.shards),
        documents=manifest.documents,
        tokens=manifest.tokens,
        damages=tuple(damages),
    )


def _verify_shard(folder: Path, info: ShardInfo, manifest: Manifest) -> list[Damage]:
    if manifest.kind == "text":
        found = text_shard_problems(folder, info)
        return [Damage(info.file, *problem) for problem in found[:_LISTED_DOCUMENTS]]
    tar, index_path = folder / info.file, folder / info.index_file
    if not tar.is_file():
        return [Damage(info.file, None, "the shard is missing")]
    damages = []
    try:
        stored = index_path.read_bytes()
        if index_checksum(stored) != info.index_checksum:
            damages.append(Damage(info.file, None, f"its index {info.index_file} is damaged"))
            stored = b""
    except OSError as error:
        reason = f"its index {info.index_file} cannot be read ({error.strerror})"
        damages.append(Damage(info.file, None, reason))
        stored = b""
    checker = _DocumentChecker(info, manifest)
    layout_problem = None
    try:
        rebuilt = build_index(tar, manifest.token_dtype, checker.check)
    except DataError as error:
        layout_problem = str(error).removeprefix(f"{tar}: ")
    else:
        if index_checksum(rebuilt.to_bytes()) == info.index_checksum:
            return damages + checker.damages
    # Something is damaged: the index, where it is sound, knows which documents.
    documents = _damaged_documents(folder, info, manifest, stored)
    damages += documents
    if layout_problem is not None:
        damages.append(Damage(info.file, None, layout_problem))
    elif not documents:
        reason = "its checksum differs, though no document's does: names or filling are damaged"
        damages.append(Damage(info.file, None, reason if stored else "its checksum differs"))
    return damages


class _DocumentChecker:
    """Looks into documents whose bytes are as written: are they what they should be?"""

    def __init__(self, info: ShardInfo, manifest: Manifest) -> None:
        self._info = info
        self._manifest = manifest
        self.damages: list[Damage] = []

    def check(self, document: StoredDocument, tokens: npt.NDArray[Any]) -> None:
        reason = None
        if len(tokens) == 0 or int(tokens[-1]) != self._manifest.eos_token_id:
            reason = f"it does not end with id {self._manifest.eos_token_id}"
        elif int(tokens.max()) >= self._manifest.vocab_size:
            reason = f"it holds id {tokens.max()}, the vocabulary has {self._manifest.vocab_size}"
        elif document.metadata is not None and not _is_metadata(document.metadata):
            reason = "its .json member holds no name"
        if reason is not None and len(self.damages) < _LISTED_DOCUMENTS:
            self.damages.append(Damage(self._info.file, document.key, reason))


def _is_metadata(data: bytes) -> bool:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and isinstance(value.get("name"), str)


def _damaged_documents(
    folder: Path, info: ShardInfo, manifest: Manifest, stored_index: bytes
) -> list[Damage]:
    if not stored_index:
        return []
    index = ShardIndex.from_bytes(stored_index)
    try:
        with (folder / info.file).open("rb", buffering=0) as file:
            positions = [
                position
                for position in range(index.documents)
                if document_problem(file.fileno(), index, position) is not None
            ]
    except OSError as error:
        return [Damage(info.file, None, f"it cannot be read ({error.strerror})")]
    damages = [
        Damage(
            info.file,
            document_key(info.stem, position),
            "the ids are damaged (their checksum differs)",
        )
        for position in positions[:_LISTED_DOCUMENTS]
    ]
    if len(positions) > _LISTED_DOCUMENTS:
        more = len(positions) - _LISTED_DOCUMENTS
        damages.append(Damage(info.file, None, f"{more} more documents are damaged"))
    return damages
