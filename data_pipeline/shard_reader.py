"""Reading tokens at random out of shards, never handing out any that fail their checksum."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from data_pipeline.errors import DataError
from data_pipeline.files import explaining
from data_pipeline.manifest import Manifest, ShardInfo
from data_pipeline.shard_index import ShardIndex, build_index, index_checksum
from data_pipeline.tar_format import BLOCK_BYTES, document_key, tokens_from_npy

DEFAULT_CACHE_BYTES = 64 * 2**20
# Each holds one open file; systems commonly allow a process 1,024.
_MAXIMUM_OPEN_SHARDS = 256


class OpenShard:
    """One shard with its index, open for reading.

    Reads use `pread`, not a memory map: a shard that is cut off or unreadable while it is used
    gives an error, where a memory map would end the process.
    """

    def __init__(
        self, folder: Path, info: ShardInfo, dtype: np.dtype[Any], *, check_size: bool = True
    ) -> None:
        """Opens the shard and checks its size and index against the manifest.

        Args:
            folder: The data set.
            info: The shard.
            dtype: Type of the ids.
            check_size: Whether a wrong size is an error already here.

        Raises:
            DataError: If the shard is missing, of another size, or its index is damaged.
        """
        self.info = info
        self._folder = folder
        self._dtype = dtype
        if check_size:
            check_shard_size(folder, info)
        self.index = load_index(folder, info, dtype)
        self.token_ends = np.cumsum(self.index.lengths_tokens.astype(np.int64))
        with explaining("read", folder / info.file):
            self._descriptor = os.open(folder / info.file, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)

    def key(self, position: int) -> str:
        """Key of one document."""
        return document_key(self.info.stem, position)

    def document(self, position: int) -> npt.NDArray[Any]:
        """All ids of one document, checked.

        Args:
            position: Number of the document in the shard.

        Returns:
            [tokens], read-only.

        Raises:
            DataError: If they are not what was written, naming shard and document.
        """
        offset_bytes = int(self.index.offsets_bytes[position])
        size_bytes = self.index.payload_bytes(position)
        with explaining("read", self._folder / self.info.file):
            payload = _read_fully(self._descriptor, size_bytes, offset_bytes)
        if len(payload) < size_bytes:
            raise self._damage(position, "the shard is cut off before its end")
        if xxhash.xxh3_64_intdigest(payload) != int(self.index.checksums[position]):
            raise self._damage(position, "its checksum differs")
        tokens = tokens_from_npy(payload, self._dtype)
        if tokens is None:
            raise self._damage(position, f"it is no array of {self._dtype.str}")
        return tokens

    def _damage(self, position: int, reason: str) -> DataError:
        path = self._folder / self.info.file
        return DataError(
            f"{path}: document {self.key(position)} is damaged ({reason}); {_remedy(self._folder)}"
        )


class DatasetReader:
    """Windows of tokens out of all shards of a data set; safe to use from several threads."""

    def __init__(
        self, folder: Path, manifest: Manifest, *, cache_bytes: int = DEFAULT_CACHE_BYTES
    ) -> None:
        """Looks at the size of every shard, which finds missing and cut off ones at once.

        Args:
            folder: The data set.
            manifest: Its manifest.
            cache_bytes: Memory for documents read last; one may be larger.

        Raises:
            DataError: Naming the first shard that is missing or of another size.
        """
        self._folder = Path(folder)
        self._manifest = manifest
        self._cache_bytes = cache_bytes
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._documents: OrderedDict[tuple[int, int], npt.NDArray[Any]] = OrderedDict()
        self._documents_bytes = 0
        self._lock = threading.Lock()
        for info in manifest.shards:
            check_shard_size(self._folder, info)

    def read_windows(
        self, shards: npt.ArrayLike, start_tokens: npt.ArrayLike, length_tokens: int
    ) -> npt.NDArray[Any]:
        """Reads windows of one length.

        Args:
            shards: [n] positions of shards in the manifest.
            start_tokens: [n] first token of each, within the shard.
            length_tokens: Length of every window.

        Returns:
            [n, length_tokens] of the data set's id type.

        Raises:
            DataError: If any document that a window touches is damaged.
        """
        places = list(
            zip(np.asarray(shards).tolist(), np.asarray(start_tokens).tolist(), strict=True)
        )
        windows = np.empty((len(places), length_tokens), dtype=self._manifest.token_dtype)
        with self._lock:
            for row, (shard, start) in zip(windows, places, strict=True):
                self._fill(row, shard, start)
        if windows.size and int(windows.max()) >= self._manifest.vocab_size:
            worst = places[int(windows.max(axis=1).argmax())][0]
            raise DataError(
                f"{self._folder / self._manifest.shards[worst].file} holds id {windows.max()}, but "
                f"the vocabulary has {self._manifest.vocab_size}; {_remedy(self._folder)}"
            )
        return windows

    def close(self) -> None:
        """Closes all files."""
        with self._lock:
            for shard in self._open.values():
                shard.close()
            self._open.clear()
            self._documents.clear()
            self._documents_bytes = 0

    def _fill(self, row: npt.NDArray[Any], shard_number: int, start: int) -> None:
        shard = self._shard(shard_number)
        position = int(np.searchsorted(shard.token_ends, start, side="right"))
        filled = 0
        while filled < len(row):
            tokens = self._document(shard_number, shard, position)
            skipped = start + filled - (int(shard.token_ends[position]) - len(tokens))
            part = tokens[skipped : skipped + len(row) - filled]
            row[filled : filled + len(part)] = part
            filled += len(part)
            position += 1

    def _shard(self, number: int) -> OpenShard:
        shard = self._open.get(number)
        if shard is None:
            info = self._manifest.shards[number]
            shard = OpenShard(self._folder, info, self._manifest.token_dtype)
            self._open[number] = shard
            if len(self._open) > _MAXIMUM_OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(number)
        return shard

    def _document(self, shard_number: int, shard: OpenShard, position: int) -> npt.NDArray[Any]:
        key = (shard_number, position)
        tokens = self._documents.get(key)
        if tokens is None:
            tokens = shard.document(position)
            self._documents[key] = tokens
            self._documents_bytes += tokens.nbytes
            while self._documents_bytes > self._cache_bytes and len(self._documents) > 1:
                _, dropped = self._documents.popitem(last=False)
                self._documents_bytes -= dropped.nbytes
        else:
            self._documents.move_to_end(key)
        return tokens


def check_shard_size(folder: Path, info: ShardInfo) -> None:
    """Compares a shard's size with the manifest.

    Raises:
        DataError: If it is missing or of another size.
    """
    path = folder / info.file
    if not path.is_file():
        raise DataError(f"{path} is missing, though the manifest lists it; {_remedy(folder)}")
    size_bytes = path.stat().st_size
    if size_bytes != info.size_bytes:
        raise DataError(
            f"{path} is damaged: it has {size_bytes} bytes, the manifest says "
            f"{info.size_bytes}; {_remedy(folder)}"
        )


def load_index(folder: Path, info: ShardInfo, dtype: np.dtype[Any]) -> ShardIndex:
    """Reads a shard's index, or makes it anew out of the shard where the file is missing.

    Raises:
        DataError: If it is not the one of the manifest or does not fit the shard.
    """
    path = folder / info.index_file
    if path.exists():
        with explaining("read", path):
            data = path.read_bytes()
        remedy = f"remove it, it is made anew from the shard, or {_remedy(folder)}"
    else:
        data = build_index(folder / info.file, dtype).to_bytes()
        path, remedy = folder / info.file, _remedy(folder)
    if index_checksum(data) != info.index_checksum:
        raise DataError(f"{path} is damaged (its checksum differs); {remedy}")
    try:
        index = ShardIndex.from_bytes(data)
    except DataError as error:
        raise DataError(f"{path} is damaged ({error}); {remedy}") from error
    if not _fits(index, info, dtype):
        raise DataError(f"{path} and the manifest contradict each other; {_remedy(folder)}")
    return index


def _fits(index: ShardIndex, info: ShardInfo, dtype: np.dtype[Any]) -> bool:
    if (index.tar_bytes, index.tar_checksum) != (info.size_bytes, info.checksum):
        return False
    if (index.documents, index.tokens, index.dtype) != (info.documents, info.tokens, dtype):
        return False
    # In floating point, which cannot overflow however absurd the numbers are.
    ends_bytes = index.offsets_bytes + index.lengths_tokens.astype(np.float64) * dtype.itemsize
    return bool(np.all(ends_bytes <= info.size_bytes - BLOCK_BYTES))


def _read_fully(descriptor: int, size_bytes: int, offset_bytes: int) -> bytes:
    """Reads until the end of the file at most; the system may hand out less at a time."""
    parts = []
    while size_bytes > 0:
        part = os.pread(descriptor, size_bytes, offset_bytes)
        if not part:
            break
        parts.append(part)
        size_bytes -= len(part)
        offset_bytes += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _remedy(folder: Path) -> str:
    return f'find all damage with "spade data verify {folder}", then build the data set again'
