"""The index beside a shard: where each document lies, how long it is, and its checksum.

The index follows from the bare tar alone, byte for byte, so it can be lost. It carries the tar's
size and checksum, and its own checksum stands in the manifest.

Two sets of checksums serve two questions. Those of fixed blocks of the tar let a reader verify just
the bytes that a window touches, however long the document around it is. Those of documents say
whose ids are damaged when a block is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import xxhash

from data_pipeline.errors import DataError
from data_pipeline.files import explaining
from data_pipeline.shards.tar_format import (
    NPY_HEADER_BYTES,
    StoredDocument,
    scan_documents,
    tokens_from_npy,
)

FORMAT_VERSION = 2
# Small, so that reading a window means reading little beside it; a page, as disks and caches work.
CHECKED_BLOCK_BYTES = 4096

_MAGIC = b"SPADEIDX"
# Magic, version, bytes of an id, documents, bytes of the tar, its xxh3_128.
_HEADER = struct.Struct("<8sIIQQ16s")
_BYTES_PER_DOCUMENT = 3 * 8
_BYTES_PER_BLOCK = 8
_DRAINED_BYTES = 2**18

UnsignedArray = npt.NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Content of an index file.

    Attributes:
        dtype: Type of the ids.
        tar_bytes: Length of the shard.
        tar_checksum: xxh3_128 of the shard, in hex.
        offsets_bytes: [documents] where each `.npy` content begins.
        lengths_tokens: [documents] ids in each, the end-of-sequence id included.
        checksums: [documents] xxh3_64 of each `.npy` content.
        block_checksums: [blocks] xxh3_64 of each `CHECKED_BLOCK_BYTES` of the shard, the last of
            which may be shorter.
    """

    dtype: np.dtype[Any]
    tar_bytes: int
    tar_checksum: str
    offsets_bytes: UnsignedArray
    lengths_tokens: UnsignedArray
    checksums: UnsignedArray
    block_checksums: UnsignedArray

    @property
    def documents(self) -> int:
        """Number of documents in the shard."""
        return len(self.lengths_tokens)

    @property
    def tokens(self) -> int:
        """Number of ids in the shard."""
        return int(self.lengths_tokens.sum())

    def payload_bytes(self, position: int) -> int:
        """Length of the `.npy` content of the document at `position`."""
        return NPY_HEADER_BYTES + int(self.lengths_tokens[position]) * self.dtype.itemsize

    def to_bytes(self) -> bytes:
        """The index file."""
        header = _HEADER.pack(
            _MAGIC,
            FORMAT_VERSION,
            self.dtype.itemsize,
            self.documents,
            self.tar_bytes,
            bytes.fromhex(self.tar_checksum),
        )
        columns = (
            self.offsets_bytes,
            self.lengths_tokens,
            self.checksums,
            self.block_checksums,
        )
        return header + b"".join(column.astype("<u8").tobytes() for column in columns)

    @classmethod
    def from_bytes(cls, data: bytes) -> ShardIndex:
        """Reads an index file; the caller has compared its checksum or does not need to.

        Raises:
            DataError: If it is no index of this version, or its length is wrong; the caller adds
                the file's name.
        """
        if len(data) < _HEADER.size or not data.startswith(_MAGIC):
            raise DataError("it is no shard index")
        _, version, item_bytes, documents, tar_bytes, tar_checksum = _HEADER.unpack_from(data)
        if version != FORMAT_VERSION or item_bytes not in (2, 4):
            raise DataError(f"it has format version {version}, this program reads {FORMAT_VERSION}")
        blocks = -(-tar_bytes // CHECKED_BLOCK_BYTES)
        expected_bytes = documents * _BYTES_PER_DOCUMENT + blocks * _BYTES_PER_BLOCK
        if len(data) != _HEADER.size + expected_bytes:
            raise DataError("it is cut off")
        numbers = np.frombuffer(data, dtype="<u8", offset=_HEADER.size)
        columns = numbers[: 3 * documents].reshape(3, documents)
        return cls(
            dtype=np.dtype(f"<u{item_bytes}"),
            tar_bytes=tar_bytes,
            tar_checksum=tar_checksum.hex(),
            offsets_bytes=columns[0],
            lengths_tokens=columns[1],
            checksums=columns[2],
            block_checksums=numbers[3 * documents :],
        )


class BlockHasher:
    """Checksums of a shard, of the whole and of its blocks, while its bytes go by."""

    def __init__(self) -> None:
        self._whole = xxhash.xxh3_128()
        self._pending = bytearray()
        self._block_checksums: list[int] = []
        self.size_bytes = 0

    def update(self, data: bytes | memoryview) -> None:
        """Takes the next bytes of the shard."""
        self._whole.update(data)
        self._pending += data
        self.size_bytes += len(data)
        if len(self._pending) >= _DRAINED_BYTES:
            self._drain(len(self._pending) // CHECKED_BLOCK_BYTES * CHECKED_BLOCK_BYTES)

    def _drain(self, length_bytes: int) -> None:
        with memoryview(self._pending) as view:
            self._block_checksums += [
                xxhash.xxh3_64_intdigest(view[start : start + CHECKED_BLOCK_BYTES])
                for start in range(0, length_bytes, CHECKED_BLOCK_BYTES)
            ]
        del self._pending[:length_bytes]

    def finish(self) -> tuple[str, UnsignedArray]:
        """xxh3_128 of the whole, in hex, and xxh3_64 of each block, [blocks]."""
        self._drain(len(self._pending))
        return self._whole.hexdigest(), np.array(self._block_checksums, dtype="<u8")


class IndexBuilder:
    """Collects the columns of an index document by document."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._offsets_bytes: list[int] = []
        self._lengths_tokens: list[int] = []
        self._checksums: list[int] = []

    @property
    def documents(self) -> int:
        """Documents added so far."""
        return len(self._offsets_bytes)

    def add(self, offset_bytes: int, length_tokens: int, checksum: int) -> None:
        """Adds the next document of the shard."""
        self._offsets_bytes.append(offset_bytes)
        self._lengths_tokens.append(length_tokens)
        self._checksums.append(checksum)

    def finish(self, hasher: BlockHasher) -> ShardIndex:
        """The index of the complete shard, all of whose bytes went through `hasher`."""
        tar_checksum, block_checksums = hasher.finish()
        return ShardIndex(
            dtype=self._dtype,
            tar_bytes=hasher.size_bytes,
            tar_checksum=tar_checksum,
            offsets_bytes=np.array(self._offsets_bytes, dtype="<u8"),
            lengths_tokens=np.array(self._lengths_tokens, dtype="<u8"),
            checksums=np.array(self._checksums, dtype="<u8"),
            block_checksums=block_checksums,
        )


class _HashingReader:
    """A file of which every byte read goes into a checksum."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.hasher = BlockHasher()

    def read(self, size_bytes: int) -> bytes:
        data = self._file.read(size_bytes)
        self.hasher.update(data)
        return data


def build_index(
    tar: Path,
    dtype: np.dtype[Any],
    visit: Callable[[StoredDocument, npt.NDArray[Any]], None] | None = None,
) -> ShardIndex:
    """Makes the index of a shard out of the bare tar.

    Args:
        tar: The shard, under its own name.
        dtype: Type of the ids.
        visit: Called with each document and its ids.

    Raises:
        DataError: If the shard is damaged in a way that its own layout shows, or unreadable. A
            flipped id does not show: compare the checksums.
    """
    builder = IndexBuilder(dtype)
    with explaining("read", tar), tar.open("rb", buffering=2**20) as file:
        reader = _HashingReader(file)
        try:
            stem, tar_bytes = tar.name.removesuffix(".tar"), tar.stat().st_size
            for document in scan_documents(cast(BinaryIO, reader), stem, tar_bytes):
                tokens = tokens_from_npy(document.payload, dtype)
                if tokens is None:
                    raise DataError(f"document {document.key}: its .npy header is damaged")
                checksum = xxhash.xxh3_64_intdigest(document.payload)
                builder.add(document.offset_bytes, len(tokens), checksum)
                if visit is not None:
                    visit(document, tokens)
        except DataError as error:
            raise DataError(f"{tar}: {error}") from error
    return builder.finish(reader.hasher)


def index_checksum(data: bytes) -> str:
    """xxh3_128 of an index file, in hex, as the manifest holds it."""
    return xxhash.xxh3_128_hexdigest(data)
