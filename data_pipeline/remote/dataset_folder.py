"""Where a data set lies: a folder of this machine, or a URL with a bounded cache before it."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import xxhash

from data_pipeline.errors import DataError
from data_pipeline.files import explaining
from data_pipeline.remote.locations import check_location, check_plain_file, join_url, show_url
from data_pipeline.remote.remote_file import MAXIMUM_SMALL_FILE_BYTES, RemoteFile, RetrySettings
from data_pipeline.remote.shard_cache import CacheSettings, ShardCache, default_cache_settings
from data_pipeline.remote.shard_prefetch import Prefetcher

__all__ = [
    "CacheSettings",
    "DatasetFolder",
    "LocalFolder",
    "RemoteFolder",
    "RetrySettings",
    "ShardFile",
    "open_dataset_folder",
]


class ShardFile(Protocol):
    """What a folder must know of a shard; `manifest.ShardInfo` is one."""

    @property
    def file(self) -> str:
        """Name of the tar."""

    @property
    def size_bytes(self) -> int:
        """Length of the tar."""

    @property
    def checksum(self) -> str:
        """xxh3_128 of the tar, in hex."""


class DatasetFolder(Protocol):
    """The files of a data set; safe to use from several threads.

    Attributes:
        name: Path or URL, for messages; no secret of a URL is in it.
    """

    name: str

    def read_bytes(self, file: str, checksum: str | None = None) -> bytes:
        """Reads a small file: the manifest, an index.

        Args:
            file: Its name.
            checksum: xxh3_128 in hex that the content must have. A remote file is then fetched
                again where it arrives damaged, and kept in the cache.

        Raises:
            DataError: If it is missing, unreadable, or not what the checksum says.
        """

    def exists(self, file: str) -> bool:
        """Whether the file is there.

        Raises:
            DataError: If a remote side does not answer.
        """

    def open_shard(self, info: ShardFile) -> int:
        """Opens a complete shard for reading.

        Args:
            info: The shard; a remote one is fetched into the cache where it is not there yet, its
                bytes compared with the checksum.

        Returns:
            A descriptor, to be closed by the caller; the size has been checked. It stays valid
            when the cache drops the shard.

        Raises:
            DataError: If it is missing, of another size, or cannot be fetched undamaged.
        """

    def refetch_shard(self, info: ShardFile) -> int | None:
        """Fetches a shard once more whose cached copy proved damaged.

        Returns:
            A descriptor as of `open_shard`, or None where there is nowhere to fetch from.

        Raises:
            DataError: If it cannot be fetched undamaged.
        """

    def prefetch(self, infos: Sequence[ShardFile]) -> None:
        """Fetches shards in the background, in this order; replaces what was asked for before.

        Only as many as fill half of the cache are fetched ahead. Nothing is raised: a shard that
        cannot be fetched is tried again, and complained of, when it is opened.
        """

    def close(self) -> None:
        """Ends background work. May be called twice; a descriptor handed out stays open."""


def open_dataset_folder(
    location: Path | str, cache: CacheSettings | None = None
) -> LocalFolder | RemoteFolder:
    """Makes the folder that a path or URL names; nothing is read yet.

    Args:
        location: A path, or a URL of s3, gs, http(s), hf or file.
        cache: Where and how much a remote data set is kept on this machine; by default in the
            user's cache folder. Paths need none.

    Raises:
        DataError: If the URL is none that this program reads, or a setting is out of range.
    """
    place = check_location(location)
    if isinstance(place, Path):
        return LocalFolder(place)
    return RemoteFolder(place, cache or default_cache_settings())


class LocalFolder:
    """A data set in a folder of this machine, or of a file system it sees."""

    def __init__(self, path: Path) -> None:
        """Names a folder; nothing is read yet."""
        self.path = Path(path)
        self.name = str(path)

    def read_bytes(self, file: str, checksum: str | None = None) -> bytes:
        """See `DatasetFolder.read_bytes`."""
        path = self.path / check_plain_file(file)
        with explaining("read", path), os.fdopen(self._open(path), "rb") as stream:
            # A buffer is taken for all that is asked for: no more than there is.
            size = os.fstat(stream.fileno()).st_size
            data = stream.read(min(size, MAXIMUM_SMALL_FILE_BYTES) + 1)
        if len(data) > MAXIMUM_SMALL_FILE_BYTES:
            raise DataError(f"{path} is larger than {MAXIMUM_SMALL_FILE_BYTES} bytes; {self._hint}")
        if checksum is not None and xxhash.xxh3_128_hexdigest(data) != checksum:
            raise DataError(f"{path} is damaged (its checksum differs); {self._hint}")
        return data

    def exists(self, file: str) -> bool:
        """See `DatasetFolder.exists`."""
        return (self.path / check_plain_file(file)).is_file()

    def open_shard(self, info: ShardFile) -> int:
        """See `DatasetFolder.open_shard`."""
        path = self.path / check_plain_file(info.file)
        if not path.exists():
            raise DataError(f"{path} is missing, though the manifest lists it; {self._hint}")
        with explaining("read", path):
            descriptor = self._open(path)
        size_bytes = os.fstat(descriptor).st_size
        if size_bytes != info.size_bytes:
            os.close(descriptor)
            raise DataError(
                f"{path} is damaged: it has {size_bytes} bytes, the manifest says "
                f"{info.size_bytes}; {self._hint}"
            )
        return descriptor

    def refetch_shard(self, info: ShardFile) -> int | None:
        """None: what lies here is all there is."""
        return None

    def prefetch(self, infos: Sequence[ShardFile]) -> None:
        """Does nothing: the system reads ahead by itself."""

    def close(self) -> None:
        """Does nothing."""

    @property
    def _hint(self) -> str:
        return (
            f'find all damage with "spade data verify {self.path}", then build the data set again'
        )

    def _open(self, path: Path) -> int:
        # A named pipe in the place of a file would otherwise be waited for without end.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise DataError(f"{path} is no ordinary file; {self._hint}")
        return descriptor


class RemoteFolder:
    """A data set behind a URL, whose shards are kept in a cache of bounded size.

    Open it in the process that uses it: connections and threads do not outlive a fork.
    """

    def __init__(self, url: str, settings: CacheSettings) -> None:
        """Names a folder; nothing is fetched yet.

        Args:
            url: Of the folder; credentials come from the environment, as fsspec's packages
                document, or stand in the URL, and then no message shows them.
            settings: Of cache and retries.

        Raises:
            DataError: If a setting is out of range.
        """
        self._url = url
        self.name = show_url(url)
        self._cache = ShardCache(settings)
        self._retry = settings.retry
        self._stop = threading.Event()
        self._prefetcher: Prefetcher[ShardFile] = Prefetcher(
            self._fetch_ahead,
            threads=settings.prefetch_threads,
            budget_bytes=settings.size_bytes // 2,
        )

    def read_bytes(self, file: str, checksum: str | None = None) -> bytes:
        """See `DatasetFolder.read_bytes`."""
        remote = self._remote(file)
        if checksum is None:
            return remote.read_small()
        return self._cache.read_small(remote, checksum)

    def exists(self, file: str) -> bool:
        """See `DatasetFolder.exists`."""
        return self._remote(file).exists()

    def open_shard(self, info: ShardFile) -> int:
        """See `DatasetFolder.open_shard`."""
        return self._cache.open(self._remote(info.file), info.size_bytes, info.checksum)

    def refetch_shard(self, info: ShardFile) -> int | None:
        """See `DatasetFolder.refetch_shard`."""
        self._cache.drop(info.checksum)
        return self.open_shard(info)

    def prefetch(self, infos: Sequence[ShardFile]) -> None:
        """See `DatasetFolder.prefetch`."""
        self._prefetcher.replace(infos)

    def close(self) -> None:
        """See `DatasetFolder.close`."""
        self._stop.set()
        self._prefetcher.close()

    def _remote(self, file: str) -> RemoteFile:
        return RemoteFile(join_url(self._url, file), self._retry, self._stop)

    def _fetch_ahead(self, info: ShardFile) -> None:
        os.close(self.open_shard(info))
