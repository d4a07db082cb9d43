"""Files of a checkpoint, written in one pass and read by place: safetensors, and plain text.

The format is that of https://github.com/huggingface/safetensors: eight bytes with the length of a
JSON header, the header, the raw numbers. It is written here because a tensor must go to the disk
and through the checksum in one pass without holding Python's lock, and read here because a file
that is mapped into memory and then lost ends the process by a signal instead of an error.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import xxhash

from pretrain.checkpoints.strict_json import parse_json
from pretrain.errors import CheckpointError

_BLOCK_BYTES = 1 << 22
_LONGEST_HEADER_BYTES = 100_000_000
_MOST_DIMENSIONS = 64
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_TYPE_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_METADATA = "__metadata__"


class WrittenFile(NamedTuple):
    """A file that is wholly on the disk."""

    size_bytes: int
    checksum: str
    """xxh3_128 in hexadecimal."""


def write_text(path: Path, text: str) -> WrittenFile:
    """Write a new text file to the disk.

    Raises:
        OSError: If it exists or cannot be written.
    """
    return _write_blocks(path, iter([text.encode("utf-8")]))


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> WrittenFile:
    """Write a new safetensors file to the disk, reading each tensor once.

    Args:
        path: The file.
        tensors: Host tensors of real numbers, by name.
        metadata: Words for the header.

    Raises:
        OSError: If the file exists or cannot be written.
    """
    described = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    return write_described(path, described, tensors.__getitem__, metadata)


def write_described(
    path: Path,
    described: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    read: Callable[[str], torch.Tensor],
    metadata: Mapping[str, str],
) -> WrittenFile:
    """Write a new safetensors file to the disk, asking for each tensor when its turn has come.

    Args:
        path: The file.
        described: Type and shape of each tensor, by name.
        read: Name to a host tensor of that type and shape; let go once it is written.
        metadata: Words for the header.

    Raises:
        OSError: If the file exists or cannot be written.
    """
    # Wide types first, as the format's own library does: every tensor is aligned to its type.
    names = sorted(described, key=lambda name: (-described[name][0].itemsize, name))
    header: dict[str, Any] = {_METADATA: dict(metadata)}
    begin = 0
    for name in names:
        dtype, shape = described[name]
        end = begin + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _TYPE_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def blocks() -> Iterator[bytes | memoryview]:
        yield len(text).to_bytes(8, "little")
        yield text
        for name in names:
            tensor = read(name)
            assert (tensor.dtype, tuple(tensor.shape)) == described[name], name
            yield _bytes_of(tensor)

    return _write_blocks(path, blocks())


def _write_blocks(path: Path, blocks: Iterator[bytes | memoryview]) -> WrittenFile:
    """Write, hash, and force to the disk; Python's lock is free during each of the three."""
    digest = xxhash.xxh3_128()
    size_bytes = 0
    with path.open("xb", buffering=0) as stream:
        for block in blocks:
            view = memoryview(block)
            for start in range(0, len(view), _BLOCK_BYTES):
                part = view[start : start + _BLOCK_BYTES]
                digest.update(part)
                while len(part):
                    part = part[stream.write(part) :]
            size_bytes += len(view)
        os.fsync(stream.fileno())
    return WrittenFile(size_bytes, digest.hexdigest())


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


class _Entry(NamedTuple):
    begin: int
    """First byte."""
    end: int
    """First byte after it."""
    dtype: torch.dtype
    shape: tuple[int, ...]


class TensorFile:
    """A safetensors file whose header was checked; numbers are read when they are asked for.

    Attributes:
        path: The file.
        metadata: Words of the header.

    Raises:
        CheckpointError: If the file cannot be read or its header is not what it should be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as stream:
                size_bytes = os.fstat(stream.fileno()).st_size
                header_bytes = int.from_bytes(stream.read(8), "little")
                if not 0 < header_bytes <= min(_LONGEST_HEADER_BYTES, size_bytes - 8):
                    raise CheckpointError(f"{path}: its header cannot be {header_bytes} bytes long")
                header = parse_json(stream.read(header_bytes))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
        except CheckpointError:
            raise
        except ValueError as error:
            raise CheckpointError(f"{path}: its header is no JSON: {error}") from None
        self.metadata = self._take_metadata(header)
        self._entries = self._check(header, 8 + header_bytes, size_bytes)

    @property
    def names(self) -> list[str]:
        """Tensors in the file."""
        return list(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def describes(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Type and shape of a tensor of the file."""
        return self._entries[name].dtype, self._entries[name].shape

    def read(self, name: str) -> torch.Tensor:
        """One whole tensor.

        Raises:
            CheckpointError: If the file cannot be read.
        """
        entry = self._entries[name]
        result = torch.empty(entry.shape, dtype=entry.dtype)
        self.read_into(name, 0, result.reshape(-1))
        return result

    def read_into(self, name: str, start: int, out: torch.Tensor) -> None:
        """Fill a vector from the elements of a flattened tensor, beginning with `start`.

        Args:
            name: A tensor of the file.
            start: Its first element that is wanted.
            out: Contiguous vector of its type on the host.

        Raises:
            CheckpointError: If the file cannot be read.
        """
        entry = self._entries[name]
        view = _bytes_of(out)
        try:
            with self.path.open("rb", buffering=0) as stream:
                stream.seek(entry.begin + start * entry.dtype.itemsize)
                while len(view):
                    count = stream.readinto(view)
                    if not count:
                        raise CheckpointError(f"{self.path}: ends inside {name}: damaged")
                    view = view[count:]
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error.strerror}") from None

    def _take_metadata(self, header: Any) -> dict[str, str]:
        if not isinstance(header, dict):
            raise CheckpointError(f"{self.path}: its header is no table: damaged")
        metadata = header.pop(_METADATA, {})
        if not isinstance(metadata, dict):
            raise CheckpointError(f"{self.path}: its metadata are no table: damaged")
        return metadata

    def _check(self, header: dict[str, Any], begin: int, size_bytes: int) -> dict[str, _Entry]:
        """The header's entries, if they cover the file's bytes once and without gaps."""
        entries = {name: self._entry(name, facts, begin) for name, facts in header.items()}
        place = begin
        for entry in sorted(entries.values(), key=lambda entry: entry[:2]):
            if entry.begin != place:
                raise CheckpointError(f"{self.path}: its tensors overlap or leave gaps: damaged")
            place = entry.end
        if place != size_bytes:
            raise CheckpointError(f"{self.path}: {size_bytes} bytes, its header describes {place}")
        return entries

    def _entry(self, name: str, facts: Any, begin: int) -> _Entry:
        """One entry of the header, which counts from the first byte after it."""
        try:
            dtype, shape = _TYPES[facts["dtype"]], facts["shape"]
            first, last = facts["data_offsets"]
            plausible = (
                isinstance(shape, list)
                and len(shape) <= _MOST_DIMENSIONS
                and all(type(number) is int and 0 <= number < 1 << 62 for number in (first, *shape))
                and last == first + math.prod(shape) * dtype.itemsize
            )
        except (KeyError, TypeError, ValueError):
            plausible = False
        if not plausible:
            raise CheckpointError(f"{self.path}: its header describes no tensor {name!r}: damaged")
        return _Entry(begin + first, begin + int(last), dtype, tuple(shape))
