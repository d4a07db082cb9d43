"""Checking the tars of others against the indexes beside them."""

from __future__ import annotations

from pathlib import Path

import xxhash

from data_pipeline.foreign.index import TextIndex
from data_pipeline.shards.manifest import ShardInfo

_BUFFER_BYTES = 2**20
_CHANGED = 'its bytes are not those that were indexed: get the tar again, or run "spade data index"'


def text_shard_problems(folder: Path, info: ShardInfo) -> list[tuple[str | None, str]]:
    """What is wrong with one tar of a data set whose tars hold texts.

    Args:
        folder: The data set.
        info: The tar.

    Returns:
        The text concerned, or None for the tar as a whole, and the reason; empty if all is sound.
    """
    tar, index = folder / info.file, folder / info.index_file
    problems: list[tuple[str | None, str]] = []
    try:
        stored = index.read_bytes()
    except OSError as error:
        stored = b""
        problems.append((None, f"its index {index.name} cannot be read ({error.strerror})"))
    if stored and xxhash.xxh3_128_hexdigest(stored) != info.index_checksum:
        stored = b""
        problems.append((None, f"its index {index.name} is damaged"))
    try:
        if _checksum(tar) == info.checksum:
            return problems
        texts = _damaged_texts(tar, TextIndex.from_bytes(stored)) if stored else []
    except OSError as error:
        return [*problems, (None, f"it cannot be read ({error.strerror})")]
    return [*problems, *texts, (None, _CHANGED)]


def _checksum(tar: Path) -> str:
    checksum = xxhash.xxh3_128()
    with tar.open("rb", buffering=0) as file:
        while data := file.read(_BUFFER_BYTES):
            checksum.update(data)
    return checksum.hexdigest()


def _damaged_texts(tar: Path, index: TextIndex) -> list[tuple[str | None, str]]:
    damaged: list[tuple[str | None, str]] = []
    columns = zip(
        index.offsets_bytes.tolist(),
        index.sizes_bytes.tolist(),
        index.checksums.tolist(),
        strict=True,
    )
    with tar.open("rb") as file:
        for position, (offset_bytes, size_bytes, checksum) in enumerate(columns):
            file.seek(offset_bytes)
            if xxhash.xxh3_64_intdigest(file.read(size_bytes)) != checksum:
                damaged.append((f"text {position} (at byte {offset_bytes})", "it is damaged"))
    return damaged
