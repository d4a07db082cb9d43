"""The bytes of a shard: plain ustar headers, npy payloads, and a strict reader of both.

A shard is a sequence of documents, each a member of an uncompressed tar: `KEY.tokens.npy`, a
one-dimensional array of token ids. Where names are kept, `KEY.json` follows, an object with the
document's name. Every byte follows from the content: no times, no owners, no extended headers. The
reader accepts exactly what the writer writes, so it can neither be led to other files nor to code.

Source of the layout: POSIX.1-1988 (ustar); the NumPy Enhancement Proposal 1 (npy version 1.0).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError

BLOCK_BYTES = 512
NPY_HEADER_BYTES = 128
# webdataset, tarfile and GNU tar take two empty blocks as the end.
END_OF_TAR = bytes(2 * BLOCK_BYTES)
# The size field has 11 octal digits.
MAXIMUM_MEMBER_BYTES = 8**11 - 1

TOKENS_SUFFIX = ".tokens.npy"
METADATA_SUFFIX = ".json"

_CHECKSUM_OFFSET = 148
# Magic and version 1.0, then how long the text is, with the line end behind it.
_NPY_TEXT_BYTES = NPY_HEADER_BYTES - 11
_NPY_START = b"\x93NUMPY\x01\x00" + struct.pack("<H", _NPY_TEXT_BYTES + 1)
_NPY_TEXT = b"{'descr': '%s', 'fortran_order': False, 'shape': (%d,), }"
# The parts of a header that are always the same: mode, owner, group; time; type, magic, device.
_BEFORE_SIZE = b"0000444\0" + b"0000000\0" + b"0000000\0"
_BEHIND_SIZE = b"\0" + b"00000000000\0"
_BEHIND_CHECKSUM = (
    b"0" + bytes(100) + b"ustar\0" + b"00" + bytes(64) + 2 * b"0000000\0" + bytes(167)
)
# While it is summed up, the checksum field itself holds spaces.
_BLANK_SUM = sum(_BEFORE_SIZE + _BEHIND_SIZE + 8 * b" " + _BEHIND_CHECKSUM)


def shard_stem(number: int) -> str:
    """Name of a shard without its suffix: `shard-000012`."""
    return f"shard-{number:06d}"


def document_key(stem: str, position: int) -> str:
    """Key of a document within its shard: `shard-000012-000345`."""
    return f"{stem}-{position:06d}"


def member_header(name: str, size_bytes: int) -> bytes:
    """The 512 bytes before a member's content.

    Args:
        name: ASCII, at most 99 characters.
        size_bytes: Length of the content.

    Raises:
        DataError: If the content is longer than the format can say.
    """
    if size_bytes > MAXIMUM_MEMBER_BYTES:
        raise DataError(
            f"{name} has {size_bytes} bytes, a tar member at most {MAXIMUM_MEMBER_BYTES}: "
            "split the document"
        )
    encoded = name.encode("ascii")
    assert len(encoded) < 100, name
    digits = b"%011o" % size_bytes
    checksum = b"%06o\0 " % (_BLANK_SUM + sum(encoded) + sum(digits))
    return b"".join(
        (encoded.ljust(100, b"\0"), _BEFORE_SIZE, digits, _BEHIND_SIZE, checksum, _BEHIND_CHECKSUM)
    )


def padding(size_bytes: int) -> bytes:
    """Zeros that fill a member's content up to a whole block."""
    return bytes(-size_bytes % BLOCK_BYTES)


def whole_blocks(size_bytes: int) -> int:
    """Length of a member's content together with its padding."""
    return size_bytes + -size_bytes % BLOCK_BYTES


def npy_header(num_tokens: int, dtype: np.dtype[Any]) -> bytes:
    """The 128 bytes before the ids in a `.npy` file, equal to what `numpy.save` writes."""
    text = _NPY_TEXT % (dtype.str.encode("ascii"), num_tokens)
    return _NPY_START + text.ljust(_NPY_TEXT_BYTES) + b"\n"


def tokens_from_npy(payload: bytes, dtype: np.dtype[Any]) -> npt.NDArray[Any] | None:
    """Token ids of a whole `.npy` content, or None where it is not one that we write.

    The header is compared, never parsed: an object array cannot be smuggled in.
    """
    num_tokens, rest = divmod(len(payload) - NPY_HEADER_BYTES, dtype.itemsize)
    if num_tokens < 0 or rest or payload[:NPY_HEADER_BYTES] != npy_header(num_tokens, dtype):
        return None
    return np.frombuffer(payload, dtype=dtype, offset=NPY_HEADER_BYTES)


def metadata_json(name: str) -> bytes:
    """Content of a document's `.json` member."""
    return b'{"name": %s}' % encode_basestring_ascii(name).encode("ascii")


@dataclass(frozen=True)
class StoredDocument:
    """One document as it lies in a shard.

    Attributes:
        key: Its key, from which both member names follow.
        offset_bytes: Where the `.npy` content begins in the shard.
        payload: The `.npy` content.
        metadata: The `.json` content, or None where names are not kept.
    """

    key: str
    offset_bytes: int
    payload: bytes
    metadata: bytes | None


def scan_documents(file: BinaryIO, stem: str, tar_bytes: int) -> Iterator[StoredDocument]:
    """Reads a shard from its beginning, accepting nothing that the writer would not write.

    Args:
        file: The shard, at its beginning.
        stem: Its name without the suffix, from which the keys must follow.
        tar_bytes: Its length; no member is read that claims to be longer.

    Yields:
        The documents in order.

    Raises:
        DataError: At the first byte that is not as it must be, naming the document and the place;
            the caller adds the file's name.
    """
    offset_bytes = 0
    position = 0
    header = file.read(BLOCK_BYTES)
    while True:
        key = document_key(stem, position)
        if header == END_OF_TAR[:BLOCK_BYTES]:
            rest = file.read(BLOCK_BYTES + 1)
            if rest != END_OF_TAR[:BLOCK_BYTES]:
                raise DataError(f"document {key}: the end of the tar is damaged")
            return
        offset_bytes += BLOCK_BYTES
        payload = _read_member(file, header, key + TOKENS_SUFFIX, key, tar_bytes)
        payload_offset_bytes = offset_bytes
        offset_bytes += whole_blocks(len(payload))
        header = file.read(BLOCK_BYTES)
        metadata = None
        name = key + METADATA_SUFFIX
        if header.startswith(name.encode("ascii") + b"\0"):
            metadata = _read_member(file, header, name, key, tar_bytes)
            offset_bytes += BLOCK_BYTES + whole_blocks(len(metadata))
            header = file.read(BLOCK_BYTES)
        yield StoredDocument(key, payload_offset_bytes, payload, metadata)
        position += 1


def _read_member(file: BinaryIO, header: bytes, name: str, key: str, tar_bytes: int) -> bytes:
    if len(header) < BLOCK_BYTES:
        raise DataError(f"document {key}: the shard is cut off before {name}")
    try:
        size_bytes = int(header[124:135], 8)
    except ValueError:
        size_bytes = -1
    if size_bytes < 0 or header != member_header(name, size_bytes):
        raise DataError(f"document {key}: {_unexpected(header, name)}")
    content = file.read(min(size_bytes, tar_bytes))
    filler = file.read(len(padding(size_bytes)))
    if len(content) < size_bytes or len(filler) < len(padding(size_bytes)):
        raise DataError(f"document {key}: the shard is cut off within {name}")
    if filler != padding(size_bytes):
        raise DataError(f"document {key}: the filling behind {name} is damaged")
    return content


def _unexpected(header: bytes, name: str) -> str:
    blank = header[:_CHECKSUM_OFFSET] + b" " * 8 + header[_CHECKSUM_OFFSET + 8 :]
    checksum = b"%06o" % sum(blank)
    if header[_CHECKSUM_OFFSET : _CHECKSUM_OFFSET + 6] != checksum:
        return f"the header of {name} is damaged"
    found = header[:100].rstrip(b"\0").decode("ascii", "backslashreplace")
    kind = header[156:157].decode("ascii", "backslashreplace")
    return (
        f"a foreign member {found!r} (type {kind!r}) stands where {name} must: "
        "this shard was not written by this program"
    )
