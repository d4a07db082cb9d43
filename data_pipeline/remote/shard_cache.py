"""A folder of bounded size that keeps remote files; any number of processes may share it.

Files are named after their checksum, so one that several data sets share is kept once. A file is
written as `CHECKSUM.partial`, which its writer holds locked and which is given its full size at
once: that is the reservation of its room, seen by everybody. A lock ends with its process, so what
a killed process leaves behind is known by being unlocked, and goes. Complete files are renamed to
`CHECKSUM.data`; the one whose time stamp is oldest goes first when room is needed. It may go while
it is being read: an open descriptor stays valid.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from data_pipeline.errors import DataError
from data_pipeline.files import PARTIAL_SUFFIX, explaining, make_folder
from data_pipeline.remote.remote_file import RemoteFile, RetrySettings

_DATA_SUFFIX = ".data"
_LOCK_FILE = "lock"
_CHECKSUM = re.compile(r"[0-9a-f]{32}\Z")
_DEFAULT_SIZE_BYTES = 64 * 2**30
_POLL_SECONDS = 0.02
# A link in the cache could lead anywhere; a named pipe would be waited for without end.
_SAFE_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """Of a cache.

    Attributes:
        folder: Made where it is missing; on a disk of this machine, since it relies on file locks.
        size_bytes: Most bytes of files, unfinished ones included.
        prefetch_threads: Shards fetched in the background at the same time.
        retry: How long and how often a remote side is asked.
    """

    folder: Path
    size_bytes: int = _DEFAULT_SIZE_BYTES
    prefetch_threads: int = 2
    retry: RetrySettings = field(default_factory=RetrySettings)

    def __post_init__(self) -> None:
        for name in ("size_bytes", "prefetch_threads"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} of a cache must be at least 1, not {getattr(self, name)}")


def default_cache_settings() -> CacheSettings:
    """The cache in the user's folder for caches, of 64 GiB."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return CacheSettings(folder=Path(base) / "spade" / "shards")


class ShardCache:
    """Remote files kept in a folder; safe for threads and processes."""

    def __init__(self, settings: CacheSettings) -> None:
        """Touches nothing yet."""
        self._folder = settings.folder
        self._size_bytes = settings.size_bytes
        # Within it, a living writer has either written something or given up.
        self._patience_seconds = 60.0 + 2 * (
            settings.retry.timeout_seconds + settings.retry.longest_delay_seconds
        )

    def open(self, remote: RemoteFile, size_bytes: int, checksum: str) -> int:
        """Opens the cached copy of a file, fetching it first where there is none.

        Args:
            remote: The file.
            size_bytes: Its length.
            checksum: xxh3_128 of it, in hex.

        Returns:
            A descriptor for reading, to be closed by the caller.

        Raises:
            DataError: If it cannot be fetched undamaged, or the cache has no room for it.
        """
        self._check_room(remote, size_bytes)
        data = self._data_path(checksum)
        descriptor = self._find(data, size_bytes)
        if descriptor is not None:
            return descriptor
        with self._held_partial(data, remote) as partial:
            # Somebody else may have fetched it while we waited.
            descriptor = self._find(data, size_bytes)
            if descriptor is not None:
                return descriptor
            return self._fill(
                partial, data, size_bytes, lambda file: remote.fetch(file, size_bytes, checksum)
            )

    def read_small(self, remote: RemoteFile, checksum: str) -> bytes:
        """Content of a small file of unknown length, fetched where it is not here undamaged.

        Raises:
            DataError: If it cannot be fetched undamaged, or the cache has no room for it.
        """
        data = self._data_path(checksum)
        content = self._read_found(data, checksum)
        if content is not None:
            return content
        with self._held_partial(data, remote) as partial:
            content = self._read_found(data, checksum)
            if content is None:
                fetched = content = remote.read_small(checksum)
                self._check_room(remote, len(content))
                os.close(self._fill(partial, data, len(content), lambda file: file.write(fetched)))
            return content

    def drop(self, checksum: str) -> None:
        """Removes a cached copy that proved damaged.

        Raises:
            DataError: If the system refuses.
        """
        data = self._data_path(checksum)
        with explaining("remove", data):
            data.unlink(missing_ok=True)

    def _data_path(self, checksum: str) -> Path:
        if not _CHECKSUM.match(checksum):
            raise DataError(f"{checksum[:40]!r} is no checksum of a file")
        return self._folder / (checksum + _DATA_SUFFIX)

    def _check_room(self, remote: RemoteFile, size_bytes: int) -> None:
        if size_bytes > self._size_bytes:
            raise DataError(
                f"{remote.name} has {size_bytes} bytes, the cache {self._folder} holds "
                f"{self._size_bytes} in all: give it more"
            )

    def _find(self, data: Path, size_bytes: int | None) -> int | None:
        """Opens a complete copy and marks it as used now; one of another size is removed."""
        with explaining("read", data):
            try:
                descriptor = os.open(data, os.O_RDONLY | _SAFE_FLAGS)
            except FileNotFoundError:
                return None
            if size_bytes in (None, os.fstat(descriptor).st_size):
                # Another user's file cannot be marked, but it can be read.
                with contextlib.suppress(OSError):
                    os.utime(descriptor)
                return descriptor
            os.close(descriptor)
            data.unlink(missing_ok=True)
        return None

    def _read_found(self, data: Path, checksum: str) -> bytes | None:
        descriptor = self._find(data, None)
        if descriptor is None:
            return None
        with explaining("read", data), os.fdopen(descriptor, "rb") as file:
            content = file.read()
        if xxhash.xxh3_128_hexdigest(content) == checksum:
            return content
        self.drop(checksum)
        return None

    @contextlib.contextmanager
    def _held_partial(self, data: Path, remote: RemoteFile) -> Iterator[int]:
        """Holds `CHECKSUM.partial` locked, waiting for whoever fetches the file at the moment."""
        make_folder(self._folder)
        path = _partial_of(data)
        patience = _Patience(self._patience_seconds, f"{remote.name}: another process holds {path}")
        while True:
            with explaining("write", path):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _SAFE_FLAGS, 0o644)
            try:
                # The one before may have renamed or removed what we have opened.
                if _try_lock(descriptor):
                    if not _is_at(descriptor, path):
                        continue
                    try:
                        yield descriptor
                    finally:
                        if _is_at(descriptor, path):
                            path.unlink()
                    return
                patience.check(os.fstat(descriptor).st_mtime_ns)
            finally:
                os.close(descriptor)
            time.sleep(_POLL_SECONDS)

    def _fill(
        self, partial: int, data: Path, size_bytes: int, write: Callable[[_PartialFile], None]
    ) -> int:
        """Makes the copy out of the partial file we hold, and opens it for reading."""
        path = _partial_of(data)
        with explaining("write", path):
            self._reserve(partial, path, size_bytes)
            write(_PartialFile(partial))
            descriptor = os.open(path, os.O_RDONLY | _SAFE_FLAGS)
            # Without waiting for the disk: after a crash of the machine the copy may hold zeros,
            # and then its reader's checksums say so and it is fetched again.
            path.rename(data)
        return descriptor

    def _reserve(self, partial: int, path: Path, size_bytes: int) -> None:
        """Gives the partial file its length as soon as there is room for it."""
        patience = _Patience(
            self._patience_seconds, f"no room in the cache {self._folder}: other processes fill it"
        )
        while True:
            with self._bookkeeping():
                others = self._make_room(path, size_bytes)
                if others is None:
                    os.ftruncate(partial, size_bytes)
                    break
            patience.check(others)
            # Shows those who wait for this file that we are alive.
            os.utime(partial)
            time.sleep(_POLL_SECONDS)
        if size_bytes:
            # A full disk shows now, not after an hour of fetching.
            os.posix_fallocate(partial, 0, size_bytes)

    @contextlib.contextmanager
    def _bookkeeping(self) -> Iterator[None]:
        """Alone among all threads and processes; for moments only."""
        descriptor = os.open(self._folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT | _SAFE_FLAGS, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _make_room(self, own: Path, size_bytes: int) -> object | None:
        """Removes the least recently used files as far as needed.

        Returns:
            None if there is room, else a state that changes while others make progress.
        """
        complete: list[tuple[int, int, Path]] = []
        unfinished: list[tuple[str, int]] = []
        free_bytes = self._size_bytes - size_bytes
        for name in sorted({path.stem for path in self._folder.iterdir()}):
            partial, data = (self._folder / (name + end) for end in (PARTIAL_SUFFIX, _DATA_SUFFIX))
            # In this order: one that is renamed meanwhile is seen at least once, by its number.
            found = {}
            if partial != own and (status := _status_unless_abandoned(partial)) is not None:
                found[status.st_ino] = status
                # Those without a length wait for room themselves: that is no progress.
                if status.st_size:
                    unfinished.append((name, status.st_mtime_ns))
            if (status := _status(data)) is not None:
                found[status.st_ino] = status
                complete.append((status.st_mtime_ns, status.st_size, data))
            free_bytes -= sum(status.st_size for status in found.values())
        if free_bytes + sum(item[1] for item in complete) < 0:
            return tuple(unfinished)
        for _, file_bytes, path in sorted(complete):
            if free_bytes >= 0:
                break
            path.unlink(missing_ok=True)
            free_bytes += file_bytes
        return None


class _PartialFile:
    """Puts arriving bytes into the partial file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._position_bytes = 0

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._descriptor, view, self._position_bytes)
            self._position_bytes += written
            view = view[written:]

    def restart(self) -> None:
        self._position_bytes = 0


class _Patience:
    """Waits as long as something changes, and so long beyond that."""

    def __init__(self, seconds: float, complaint: str) -> None:
        self._seconds = seconds
        self._complaint = complaint
        self._state: object = None
        self._changed_seconds = time.monotonic()

    def check(self, state: object) -> None:
        now_seconds = time.monotonic()
        if state != self._state:
            self._state, self._changed_seconds = state, now_seconds
        elif now_seconds - self._changed_seconds > self._seconds:
            raise DataError(
                f"{self._complaint}, and nothing has gone on for {self._seconds:.0f} s; end what "
                "hangs, then run the same command again"
            )


def _partial_of(data: Path) -> Path:
    return data.with_suffix(PARTIAL_SUFFIX)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _status(path: Path) -> os.stat_result | None:
    """Of an ordinary file; None for anything else."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _status_unless_abandoned(path: Path) -> os.stat_result | None:
    """Of a partial file; one whose writer is gone is removed. The caller does the bookkeeping."""
    if _status(path) is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDWR | _SAFE_FLAGS)
    except FileNotFoundError:
        return None
    try:
        # First the lock: whoever holds it under this name is the only one to rename or remove it.
        if not _try_lock(descriptor) or not _is_at(descriptor, path):
            return _status(path)
        path.unlink()
        return None
    finally:
        os.close(descriptor)
