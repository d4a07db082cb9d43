"""Reading tokens at random out of shards, never handing out any that fail their checksum."""

from __future__ import annotations

import logging
import mmap
import os
import time
from array import array
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from data_pipeline.errors import DamageError, DataError
from data_pipeline.files import read_at
from data_pipeline.remote.dataset_folder import DatasetFolder, LocalFolder
from data_pipeline.shards.manifest import ShardInfo
from data_pipeline.shards.shard_index import (
    CHECKED_BLOCK_BYTES,
    ShardIndex,
    build_index,
    index_checksum,
)
from data_pipeline.shards.tar_format import (
    BLOCK_BYTES,
    NPY_HEADER_BYTES,
    document_key,
    tokens_from_npy,
)

_LOGGER = logging.getLogger("data_pipeline")

# Waits before reading again what came wrong: a network file system may just have hiccuped.
_RETRY_SECONDS = (0.02, 0.2)


class Scratch:
    """Memory that windows are read into before their documents are picked out of it."""

    def __init__(self) -> None:
        self._memory = memoryview(bytearray(64 * CHECKED_BLOCK_BYTES))

    def take(self, size_bytes: int) -> memoryview:
        """`size_bytes` of memory, overwritten by the next call."""
        if size_bytes > len(self._memory):
            self._memory = memoryview(bytearray(2 * size_bytes))
        return self._memory[:size_bytes]


class OpenShard:
    """One shard with its index, open for reading.

    By default reads use `preadv`: a shard that is cut off or unreadable while it is used gives an
    error, where a memory map, which is faster, ends the process.
    """

    def __init__(
        self,
        folder: DatasetFolder,
        info: ShardInfo,
        dtype: np.dtype[Any],
        *,
        memory_map: bool = False,
    ) -> None:
        """Opens the shard and checks its size and index against the manifest.

        Args:
            folder: The data set.
            info: The shard.
            dtype: Type of the ids.
            memory_map: Whether reads go through a memory map.

        Raises:
            DataError: If the shard is missing, of another size, or its index is damaged.
        """
        self.info = info
        self._folder = folder
        self._dtype = dtype
        self._memory_map = memory_map
        self.index = load_index(folder, info, dtype)
        # In compact arrays whose elements are quick to reach one by one.
        self._ends = array("q", np.cumsum(self.index.lengths_tokens.astype(np.int64)).tobytes())
        self._offsets = array("q", self.index.offsets_bytes.astype(np.int64).tobytes())
        self._block_checksums = array("Q", self.index.block_checksums.tobytes())
        self._take(folder.open_shard(info))

    def _take(self, descriptor: int) -> None:
        """Reads from this descriptor from now on."""
        self._descriptor = descriptor
        self._map: memoryview | None = None
        if self._memory_map:
            self._map = memoryview(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ))

    def close(self) -> None:
        """Closes the file."""
        self._map = None
        os.close(self._descriptor)

    def read(
        self,
        target: memoryview,
        start_token: int,
        scratch: Scratch,
        segments: npt.NDArray[np.uint16] | None = None,
    ) -> None:
        """Reads a window of the shard's documents, which lie end to end.

        Args:
            target: Memory of as many ids as are wanted, in bytes.
            start_token: First of them, within the shard.
            scratch: Memory to work in.
            segments: [tokens] filled with the number of the document in the window, from 1.

        Raises:
            DamageError: If they are not what was written, naming shard and documents.
        """
        length = len(target) // self._dtype.itemsize
        blocks, pieces = self._pieces(start_token, length)
        content = self._read_blocks(blocks, scratch)
        if self._damaged_blocks(content, blocks):
            content = self._read_again(blocks, scratch, start_token, length)
        done = 0
        for place, size_bytes in pieces:
            target[done : done + size_bytes] = content[place : place + size_bytes]
            done += size_bytes
        if segments is not None:
            lengths = [size_bytes // self._dtype.itemsize for _, size_bytes in pieces]
            segments[:] = np.repeat(np.arange(1, len(pieces) + 1, dtype=np.uint16), lengths)

    def document_at(self, token: int) -> int:
        """Number of the document that a token of the shard belongs to."""
        return bisect_right(self._ends, token)

    def _pieces(self, start: int, length: int) -> tuple[range, list[tuple[int, int]]]:
        """A window's blocks of the tar, and (place, size) of each of its documents.

        Both are in bytes, places counted from the beginning of the first block.
        """
        item_bytes = self._dtype.itemsize
        position = bisect_right(self._ends, start)
        before = self._ends[position - 1] if position else 0
        place = self._offsets[position] + NPY_HEADER_BYTES + (start - before) * item_bytes
        first_block = place // CHECKED_BLOCK_BYTES
        base = first_block * CHECKED_BLOCK_BYTES
        pieces, stop = [], start + length
        while True:
            end = min(stop, self._ends[position])
            size_bytes = (end - start) * item_bytes
            pieces.append((place - base, size_bytes))
            if end == stop:
                break
            start = end
            position += 1
            place = self._offsets[position] + NPY_HEADER_BYTES
        last_block = (place + size_bytes - 1) // CHECKED_BLOCK_BYTES
        return range(first_block, last_block + 1), pieces

    def _read_blocks(self, blocks: range, scratch: Scratch) -> memoryview:
        """Content of neighbouring blocks; shorter where the shard ends or is cut off."""
        offset_bytes = blocks.start * CHECKED_BLOCK_BYTES
        if self._map is not None:
            return self._map[offset_bytes : blocks.stop * CHECKED_BLOCK_BYTES]
        content = scratch.take(len(blocks) * CHECKED_BLOCK_BYTES)
        read_bytes = 0
        while read_bytes < len(content):
            try:
                count = os.preadv(
                    self._descriptor, [content[read_bytes:]], offset_bytes + read_bytes
                )
            except OSError:
                # Unreadable is damaged: what lies there will not match its checksum.
                content[read_bytes:] = bytes(len(content) - read_bytes)
                break
            if count == 0:
                break
            read_bytes += count
        return content[:read_bytes]

    def _damaged_blocks(self, content: memoryview, blocks: range) -> list[int]:
        checksums = self._block_checksums[blocks.start : blocks.stop]
        hashed, size, start = xxhash.xxh3_64_intdigest, CHECKED_BLOCK_BYTES, 0
        damaged = []
        for checksum in checksums:
            if hashed(content[start : start + size]) != checksum:
                damaged.append(blocks.start + start // size)
            start += size
        return damaged

    def _read_again(self, blocks: range, scratch: Scratch, start: int, length: int) -> memoryview:
        """Reads blocks until they are sound, or at least the window's documents in them are."""
        for seconds in (*_RETRY_SECONDS, None):
            content = self._read_blocks(blocks, scratch)
            if not self._damaged_blocks(content, blocks):
                return content
            if seconds is not None:
                time.sleep(seconds)
        descriptor = self._folder.refetch_shard(self.info)
        if descriptor is not None:
            os.close(self._descriptor)
            self._take(descriptor)
            content = self._read_blocks(blocks, scratch)
        damaged = self._damaged_blocks(content, blocks)
        ranges, reasons = self._damaged_ranges(damaged, start, length)
        if ranges:
            raise DamageError(
                f"{self._folder.name}/{self.info.file}: {', '.join(reasons)}; "
                f"{_remedy(self._folder.name)}",
                shard_file=self.info.file,
                ranges=tuple(ranges),
            )
        # What is damaged is a name or filling beside the ids, which are as they were written.
        return self._read_blocks(blocks, scratch)

    def _damaged_ranges(
        self, blocks: list[int], start: int, length: int
    ) -> tuple[list[tuple[int, int]], list[str]]:
        """Which tokens are damaged, and why, where damaged blocks meet a window's documents.

        All ids that a damaged document has in a damaged block count, whether the window has them or
        not: so what is damaged follows from the data alone, not from what was read of them.
        """
        ranges, reasons = [], []
        item_bytes = self._dtype.itemsize
        first = bisect_right(self._ends, start)
        last = bisect_right(self._ends, start + length - 1)
        for position in range(first, last + 1):
            begin_bytes = self._offsets[position] + NPY_HEADER_BYTES
            before = self._ends[position - 1] if position else 0
            tokens = self._ends[position] - before
            touched = []
            for block in blocks:
                begin = (block * CHECKED_BLOCK_BYTES - begin_bytes) // item_bytes
                end = ((block + 1) * CHECKED_BLOCK_BYTES - begin_bytes) // item_bytes
                begin, end = before + max(0, begin), before + min(tokens, end)
                if begin < end and begin < start + length and start < end:
                    touched.append((begin, end))
            if not touched:
                continue
            reason = document_problem(self._descriptor, self.index, position)
            if reason is not None:
                ranges += touched
                reasons.append(f"document {self.key(position)} is damaged ({reason})")
        return ranges, reasons

    def key(self, position: int) -> str:
        """Key of one document."""
        return document_key(self.info.stem, position)


def document_problem(descriptor: int, index: ShardIndex, position: int) -> str | None:
    """What is wrong with the ids of one document of a shard, or None if they are as written.

    Args:
        descriptor: The open shard.
        index: Its index.
        position: Number of the document in the shard.
    """
    payload_bytes = index.payload_bytes(position)
    try:
        payload = read_at(descriptor, payload_bytes, int(index.offsets_bytes[position]))
    except OSError as error:
        return error.strerror or str(error)
    if len(payload) < payload_bytes:
        return "the shard is cut off before its end"
    if xxhash.xxh3_64_intdigest(payload) != int(index.checksums[position]):
        return "its checksum differs"
    if tokens_from_npy(payload, index.dtype) is None:
        return f"it is no array of {index.dtype.str}"
    return None


def check_shard_size(folder: Path, info: ShardInfo) -> None:
    """Compares a shard's size with the manifest.

    Raises:
        DataError: If it is missing or of another size.
    """
    path = folder / info.file
    if not path.is_file():
        raise DataError(f"{path} is missing, though the manifest lists it; {_remedy(str(folder))}")
    size_bytes = path.stat().st_size
    if size_bytes != info.size_bytes:
        raise DataError(
            f"{path} is damaged: it has {size_bytes} bytes, the manifest says "
            f"{info.size_bytes}; {_remedy(str(folder))}"
        )


def load_index(location: Path | DatasetFolder, info: ShardInfo, dtype: np.dtype[Any]) -> ShardIndex:
    """Reads a shard's index; where it is missing or damaged, a local shard gives it anew.

    Raises:
        DataError: If neither is the one of the manifest, or it does not fit the shard.
    """
    folder = LocalFolder(location) if isinstance(location, Path) else location
    name = f"{folder.name}/{info.index_file}"
    remedy = _remedy(folder.name)
    try:
        data = folder.read_bytes(info.index_file, info.index_checksum)
    except DataError as error:
        if not isinstance(folder, LocalFolder):
            raise
        check_shard_size(folder.path, info)
        _LOGGER.warning("%s; made anew from the shard", error)
        data = build_index(folder.path / info.file, dtype).to_bytes()
        if index_checksum(data) != info.index_checksum:
            raise DataError(
                f"{name} is missing or damaged, and so is {info.file}; {remedy}"
            ) from error
    try:
        index = ShardIndex.from_bytes(data)
    except DataError as error:
        raise DataError(f"{name} is damaged ({error}); {remedy}") from error
    if not _fits(index, info, dtype):
        raise DataError(f"{name} and the manifest contradict each other; {remedy}")
    return index


def _fits(index: ShardIndex, info: ShardInfo, dtype: np.dtype[Any]) -> bool:
    if (index.tar_bytes, index.tar_checksum) != (info.size_bytes, info.checksum):
        return False
    if (index.documents, index.tokens, index.dtype) != (info.documents, info.tokens, dtype):
        return False
    if bool(np.any(index.offsets_bytes % dtype.itemsize)):
        return False
    # In floating point, which cannot overflow however absurd the numbers are.
    ends_bytes = index.offsets_bytes + index.lengths_tokens.astype(np.float64) * dtype.itemsize
    return bool(np.all(ends_bytes <= info.size_bytes - BLOCK_BYTES))


def _remedy(folder: str) -> str:
    return (
        f'find all damage with "spade data verify {folder}" and mend it with "spade data repair", '
        "or go on without it with data.on_damage: quarantine"
    )
