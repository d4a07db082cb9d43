"""The index beside a shard: where each document lies, how long it is, and its checksum.

The index follows from the bare tar alone, byte for byte, so it can be lost. It carries the tar's
size and checksum, and its own checksum stands in the manifest.
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
from data_pipeline.tar_format import (
    NPY_HEADER_BYTES,
    StoredDocument,
    scan_documents,
    tokens_from_npy,
)

FORMAT_VERSION = 1

_MAGIC = b"SPADEIDX"
# Magic, version, bytes of an id, documents, bytes of the tar, its xxh3_128.
_HEADER = struct.Struct("<8sIIQQ16s")
_BYTES_PER_DOCUMENT = 3 * 8

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
    """

    dtype: np.dtype[Any]
    tar_bytes: int
    tar_checksum: str
    offsets_bytes: UnsignedArray
    lengths_tokens: UnsignedArray
    checksums: UnsignedArray

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
        columns = (self.offsets_bytes, self.lengths_tokens, self.checksums)
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
        if len(data) != _HEADER.size + documents * _BYTES_PER_DOCUMENT:
            raise DataError("it is cut off")
        columns = np.frombuffer(data, dtype="<u8", offset=_HEADER.size).reshape(3, documents)
        return cls(
            dtype=np.dtype(f"<u{item_bytes}"),
            tar_bytes=tar_bytes,
            tar_checksum=tar_checksum.hex(),
            offsets_bytes=columns[0],
            lengths_tokens=columns[1],
            checksums=columns[2],
        )


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

    def finish(self, tar_bytes: int, tar_checksum: str) -> ShardIndex:
        """The index of the complete shard."""
        return ShardIndex(
            dtype=self._dtype,
            tar_bytes=tar_bytes,
            tar_checksum=tar_checksum,
            offsets_bytes=np.array(self._offsets_bytes, dtype="<u8"),
            lengths_tokens=np.array(self._lengths_tokens, dtype="<u8"),
            checksums=np.array(self._checksums, dtype="<u8"),
        )


class _HashingReader:
    """A file of which every byte read goes into a checksum."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.checksum = xxhash.xxh3_128()
        self.read_bytes = 0

    def read(self, size_bytes: int) -> bytes:
        data = self._file.read(size_bytes)
        self.checksum.update(data)
        self.read_bytes += len(data)
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
    return builder.finish(reader.read_bytes, reader.checksum.hexdigest())


def index_checksum(data: bytes) -> str:
    """xxh3_128 of an index file, in hex, as the manifest holds it."""
    return xxhash.xxh3_128_hexdigest(data)
