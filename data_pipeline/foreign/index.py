"""The index beside a tar that others made: where its texts lie and how many ids they become.

It stands in for `shard_index`, whose tars hold ids. The tar itself is never touched.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError

FORMAT_VERSION = 1
MAGIC = b"SPADETXT"

# Magic, version, texts, bytes of the tar, its xxh3_128, fingerprint of what the lengths depend on.
_HEADER = struct.Struct("<8sIQQ16s16s4x")
_BYTES_PER_TEXT = 4 * 8

UnsignedArray = npt.NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class TextIndex:
    """Content of an index file.

    Attributes:
        tar_bytes: Length of the tar.
        tar_checksum: xxh3_128 of the tar, in hex.
        options_fingerprint: Of tokenizer and text member, 32 hex digits.
        offsets_bytes: [documents] where each text member's content begins.
        sizes_bytes: [documents] its length.
        lengths_tokens: [documents] ids of each, the end-of-sequence id included.
        checksums: [documents] xxh3_64 of each text member's content.
    """

    tar_bytes: int
    tar_checksum: str
    options_fingerprint: str
    offsets_bytes: UnsignedArray
    sizes_bytes: UnsignedArray
    lengths_tokens: UnsignedArray
    checksums: UnsignedArray

    @property
    def documents(self) -> int:
        """Number of texts."""
        return len(self.offsets_bytes)

    @property
    def tokens(self) -> int:
        """Number of ids."""
        return int(self.lengths_tokens.sum())

    def to_bytes(self) -> bytes:
        """The index file."""
        header = _HEADER.pack(
            MAGIC,
            FORMAT_VERSION,
            self.documents,
            self.tar_bytes,
            bytes.fromhex(self.tar_checksum),
            bytes.fromhex(self.options_fingerprint),
        )
        columns = (self.offsets_bytes, self.sizes_bytes, self.lengths_tokens, self.checksums)
        return header + b"".join(column.astype("<u8").tobytes() for column in columns)

    @classmethod
    def from_bytes(cls, data: bytes) -> TextIndex:
        """Reads an index file.

        Raises:
            DataError: If it is no index of this version, or its numbers cannot be; the caller adds
                the file's name.
        """
        if len(data) < _HEADER.size or not data.startswith(MAGIC):
            raise DataError("it is no index of texts")
        fields: tuple[Any, ...] = _HEADER.unpack_from(data)
        _, version, documents, tar_bytes, tar_checksum, options = fields
        if version != FORMAT_VERSION:
            raise DataError(f"it has format version {version}, this program reads {FORMAT_VERSION}")
        if len(data) != _HEADER.size + documents * _BYTES_PER_TEXT:
            raise DataError("it is cut off")
        columns = np.frombuffer(data, dtype="<u8", offset=_HEADER.size).reshape(4, documents)
        index = cls(
            tar_bytes=tar_bytes,
            tar_checksum=tar_checksum.hex(),
            options_fingerprint=options.hex(),
            offsets_bytes=columns[0],
            sizes_bytes=columns[1],
            lengths_tokens=columns[2],
            checksums=columns[3],
        )
        index._check()
        return index

    def _check(self) -> None:
        # In floating point, which cannot overflow however absurd the numbers are.
        starts, sizes = self.offsets_bytes.astype(np.float64), self.sizes_bytes.astype(np.float64)
        if np.any(starts[:-1] + sizes[:-1] > starts[1:]) or np.any(starts + sizes > self.tar_bytes):
            raise DataError("it names texts outside the tar")
        # A character of a byte may become the three bytes of a mark, each an id; then the end.
        if np.any(self.lengths_tokens < 1) or np.any(self.lengths_tokens > 4.0 * sizes + 16):
            raise DataError("it holds lengths that cannot be")
