"""Writing one shard: the tar and its index, under temporary names until both are complete."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash

from data_pipeline.errors import DataError
from data_pipeline.files import explaining, partial_path, synchronize_folder
from data_pipeline.shards.manifest import ShardInfo
from data_pipeline.shards.shard_index import BlockHasher, IndexBuilder, ShardIndex, index_checksum
from data_pipeline.shards.tar_format import (
    BLOCK_BYTES,
    END_OF_TAR,
    METADATA_SUFFIX,
    TOKENS_SUFFIX,
    document_key,
    member_header,
    metadata_json,
    npy_header,
    padding,
    shard_stem,
    whole_blocks,
)

_BUFFER_BYTES = 2**20
_GATHERED_BYTES = 2**18


def write_shard(
    folder: Path,
    number: int,
    documents: Iterable[tuple[str | None, npt.NDArray[Any]]],
    dtype: np.dtype[Any],
) -> ShardInfo:
    """Writes a shard; it appears under its name only when it is complete on the disk.

    Args:
        folder: The data set's folder.
        number: Number of the shard.
        documents: Names, or None where they are not kept, and [tokens] ids of `dtype`, each
            ending with the end-of-sequence id.
        dtype: Type of the ids.

    Raises:
        DataError: If the system refuses; nothing is left behind then.
    """
    stem = shard_stem(number)
    tar, index_path = folder / f"{stem}.tar", folder / f"{stem}.idx"
    partials = (partial_path(tar), partial_path(index_path))
    try:
        with explaining("write", tar):
            with partials[0].open("wb") as file:
                index = _write_tar(file, stem, documents, dtype)
                file.flush()
                os.fsync(file.fileno())
            index_bytes = index.to_bytes()
            with partials[1].open("wb") as file:
                file.write(index_bytes)
                file.flush()
                os.fsync(file.fileno())
            # The tar last: where it is, its index is.
            partials[1].replace(index_path)
            partials[0].replace(tar)
            synchronize_folder(folder)
    except BaseException:
        for partial in partials:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        raise
    return _info(tar.name, index, index_bytes)


def _write_tar(
    file: BinaryIO,
    stem: str,
    documents: Iterable[tuple[str | None, npt.NDArray[Any]]],
    dtype: np.dtype[Any],
) -> ShardIndex:
    builder = IndexBuilder(dtype)
    hasher = BlockHasher()
    # Small pieces are gathered, so that few large ones are written and summed up.
    pieces: list[bytes] = []
    tar_bytes, flushed_bytes = 0, 0
    for position, (name, tokens) in enumerate(documents):
        assert tokens.dtype == dtype, tokens.dtype
        assert tokens.ndim == 1, tokens.shape
        key = document_key(stem, position)
        payload = npy_header(len(tokens), dtype) + tokens.tobytes()
        payload_bytes = len(payload)
        builder.add(tar_bytes + BLOCK_BYTES, len(tokens), xxhash.xxh3_64_intdigest(payload))
        pieces += (
            member_header(key + TOKENS_SUFFIX, payload_bytes),
            payload,
            padding(payload_bytes),
        )
        tar_bytes += BLOCK_BYTES + whole_blocks(payload_bytes)
        if name is not None:
            metadata = metadata_json(name)
            pieces += (
                member_header(key + METADATA_SUFFIX, len(metadata)),
                metadata,
                padding(len(metadata)),
            )
            tar_bytes += BLOCK_BYTES + whole_blocks(len(metadata))
        if tar_bytes - flushed_bytes >= _GATHERED_BYTES:
            _flush(file, hasher, pieces)
            flushed_bytes = tar_bytes
    _flush(file, hasher, [*pieces, END_OF_TAR])
    return builder.finish(hasher)


def _flush(file: BinaryIO, hasher: BlockHasher, pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    pieces.clear()
    file.write(data)
    hasher.update(data)


def finished_shard(folder: Path, number: int) -> ShardInfo | None:
    """The shard of this number if it is there, complete and undamaged; else None.

    Every byte of it is read.
    """
    tar = folder / f"{shard_stem(number)}.tar"
    try:
        index_bytes = tar.with_suffix(".idx").read_bytes()
        index = ShardIndex.from_bytes(index_bytes)
        if tar.stat().st_size != index.tar_bytes:
            return None
        checksum = xxhash.xxh3_128()
        with tar.open("rb", buffering=0) as file:
            while data := file.read(_BUFFER_BYTES):
                checksum.update(data)
    except (OSError, DataError):
        return None
    if checksum.hexdigest() != index.tar_checksum:
        return None
    return _info(tar.name, index, index_bytes)


def _info(file: str, index: ShardIndex, index_bytes: bytes) -> ShardInfo:
    return ShardInfo(
        file=file,
        size_bytes=index.tar_bytes,
        documents=index.documents,
        tokens=index.tokens,
        checksum=index.tar_checksum,
        index_checksum=index_checksum(index_bytes),
    )
