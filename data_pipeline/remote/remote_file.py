"""One file behind a URL: fetched in bounded memory, with time-outs, retries and a checksum."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol, cast

import xxhash

from data_pipeline.errors import DataError, UnavailableError
from data_pipeline.remote.locations import scheme_of, show_text, show_url
from data_pipeline.remote.remote_filesystem import remote_filesystem

MAXIMUM_SMALL_FILE_BYTES = 2**28
# Asked for at once. It must arrive within the time-out, so that a trickle counts as silence.
_CHUNK_BYTES = 2**23
_CHUNKS_AHEAD = 2
_PATIENCE_FOR_ROOM_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class RetrySettings:
    """How long and how often a remote side is asked.

    Attributes:
        attempts: Tries in all.
        timeout_seconds: A connection, and then every 8 MiB, must arrive within this time.
        first_delay_seconds: Wait after the first failure; each further one doubles it.
        longest_delay_seconds: Bound of a wait.
    """

    attempts: int = 6
    timeout_seconds: float = 60.0
    first_delay_seconds: float = 0.5
    longest_delay_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise DataError(f"attempts must be at least 1, not {self.attempts}")
        for name in ("timeout_seconds", "first_delay_seconds", "longest_delay_seconds"):
            if not 0 < getattr(self, name) <= 86400:
                raise DataError(
                    f"{name} must lie above 0 and up to a day, not {getattr(self, name)}"
                )

    def delay_seconds(self, attempt: int, name: str) -> float:
        """Wait after failure number `attempt` (from 1) with a file.

        Spread over half of its length, by process and file, so that a thousand ranks that fail
        together do not come back together.
        """
        doubled = self.first_delay_seconds * 2.0 ** min(attempt - 1, 60)
        spread = xxhash.xxh3_64_intdigest(f"{os.getpid()} {attempt} {name}".encode()) / 2**64
        return min(doubled, self.longest_delay_seconds) * (0.5 + 0.5 * spread)


class Arrival(Protocol):
    """Where a file's bytes are put as they come in."""

    def write(self, data: bytes) -> None:
        """Takes the next bytes."""

    def restart(self) -> None:
        """Forgets all bytes: they proved wrong, or cannot be continued."""


class _Fault(Exception):
    """One try failed; the message says why, without secrets.

    Attributes:
        is_final: Whether another try would fail alike.
        is_damage: Whether an answer came, with wrong bytes.
    """

    def __init__(self, reason: str, *, is_final: bool = False, is_damage: bool = False) -> None:
        super().__init__(reason)
        self.is_final = is_final
        self.is_damage = is_damage


class _Memory(bytearray):
    """Puts a small file into memory."""

    def write(self, data: bytes) -> None:
        self += data

    def restart(self) -> None:
        self.clear()


class RemoteFile:
    """A file behind a URL.

    Attributes:
        name: The URL as messages show it.
    """

    def __init__(self, url: str, retry: RetrySettings, stop: threading.Event | None = None) -> None:
        """Names a file; nothing is asked yet.

        Args:
            url: Of the file, of a scheme in `REMOTE_SCHEMES`.
            retry: How long and how often to ask.
            stop: Ends waiting and fetching with an error once it is set.
        """
        self.name = show_url(url)
        self._url = url
        self._retry = retry
        self._stop = stop or threading.Event()

    def exists(self) -> bool:
        """Whether the file is there.

        Raises:
            DataError: If the remote side does not answer.
        """
        return bool(self._try(self._exists_once))

    def read_small(self, checksum: str | None = None) -> bytes:
        """The whole file, which may have `MAXIMUM_SMALL_FILE_BYTES`.

        Args:
            checksum: xxh3_128 in hex that the content must have, or None.

        Raises:
            DataError: If it cannot be fetched undamaged or is larger.
        """
        memory = _Memory()
        self.fetch(memory, None, checksum)
        return bytes(memory)

    def fetch(self, arrival: Arrival, size_bytes: int | None, checksum: str | None) -> None:
        """Fetches the file, however often it takes, going on where a connection was cut.

        Args:
            arrival: Takes the bytes; nothing has been written to it yet.
            size_bytes: Length that the file must have, or None for any up to
                `MAXIMUM_SMALL_FILE_BYTES`.
            checksum: xxh3_128 in hex that the content must have, or None.

        Raises:
            DataError: Naming URL, tries and the last cause.
        """
        state = _Fetch(arrival, size_bytes, checksum)
        self._try(lambda: self._fetch_once(state))

    def _try(self, action: Callable[[], Any]) -> Any:
        attempt = 1
        while True:
            try:
                return action()
            except _Fault as fault:
                if fault.is_final or attempt >= self._retry.attempts:
                    kind = DataError if fault.is_damage else UnavailableError
                    raise kind(self._failure(fault, attempt)) from None
                delay_seconds = self._retry.delay_seconds(attempt, self.name)
                if self._stop.wait(delay_seconds):
                    raise UnavailableError(f"{self.name}: fetching was stopped") from None
                attempt += 1

    def _failure(self, fault: _Fault, attempts: int) -> str:
        tries = f"after {attempts} tries" if attempts > 1 else "at the first try"
        if fault.is_final:
            return f"cannot fetch {self.name}: {fault}"
        return (
            f"cannot fetch {self.name}: {fault}, {tries}; check the URL, the network and the "
            "remote side, then run the same command again"
        )

    def _exists_once(self) -> bool:
        return any(self._guarded(lambda _: _answers(self._url, self._retry)))

    def _fetch_once(self, state: _Fetch) -> None:
        start_bytes = state.received_bytes
        for chunk in self._guarded(
            lambda abandoned: _chunks(self._url, self._retry, start_bytes, abandoned)
        ):
            if self._stop.is_set():
                raise _Fault("fetching was stopped", is_final=True)
            state.take(chunk)
        state.finish()

    def _guarded(self, produce: Callable[[threading.Event], Iterator[bytes]]) -> Iterator[bytes]:
        """Hands on chunks that another thread asks for; silence beyond the time-out fails.

        The libraries' own time-outs have holes. A thread that hangs is left to itself.
        """
        ready: queue.Queue[bytes | BaseException | None] = queue.Queue(_CHUNKS_AHEAD)
        abandoned = threading.Event()

        def offer(item: bytes | BaseException | None) -> bool:
            while not abandoned.is_set():
                try:
                    ready.put(item, timeout=_PATIENCE_FOR_ROOM_SECONDS)
                except queue.Full:
                    continue
                return True
            return False

        def work() -> None:
            try:
                for chunk in produce(abandoned):
                    if not offer(chunk):
                        return
                offer(None)
            except BaseException as error:
                # Told in the thread that waits: it must not end unheard.
                offer(error)

        threading.Thread(target=work, name="remote file", daemon=True).start()
        try:
            while (item := self._next(ready)) is not None:
                yield item
        finally:
            abandoned.set()

    def _next(self, ready: queue.Queue[bytes | BaseException | None]) -> bytes | None:
        deadline_seconds = time.monotonic() + self._retry.timeout_seconds
        while True:
            if self._stop.is_set():
                raise _Fault("fetching was stopped", is_final=True)
            left_seconds = deadline_seconds - time.monotonic()
            if left_seconds <= 0:
                raise _Fault(f"no answer within {self._retry.timeout_seconds:g} s")
            try:
                item = ready.get(timeout=min(left_seconds, 0.5))
            except queue.Empty:
                continue
            if isinstance(item, BaseException):
                raise _fault_of(item) from None
            return item


class _Fetch:
    """A file on its way over several tries."""

    def __init__(self, arrival: Arrival, size_bytes: int | None, checksum: str | None) -> None:
        self._arrival = arrival
        self._size_bytes = size_bytes
        self._checksum = checksum
        self._limit_bytes = MAXIMUM_SMALL_FILE_BYTES if size_bytes is None else size_bytes
        self._hasher = xxhash.xxh3_128()
        self.received_bytes = 0

    def take(self, chunk: bytes) -> None:
        self.received_bytes += len(chunk)
        if self.received_bytes > self._limit_bytes:
            self._restart()
            reason = f"it has more than the {self._limit_bytes} bytes it should have"
            raise _Fault(reason, is_damage=True)
        self._arrival.write(chunk)
        self._hasher.update(chunk)

    def finish(self) -> None:
        received_bytes = self.received_bytes
        if self._size_bytes is not None and received_bytes < self._size_bytes:
            raise _Fault(f"it ended after {received_bytes} of {self._size_bytes} bytes")
        if self._checksum is not None and self._hasher.hexdigest() != self._checksum:
            self._restart()
            reason = f"wrong bytes arrived ({received_bytes} of them, another checksum)"
            raise _Fault(reason, is_damage=True)

    def _restart(self) -> None:
        self._arrival.restart()
        self._hasher.reset()
        self.received_bytes = 0


def _answers(url: str, retry: RetrySettings) -> Iterator[bytes]:
    """One item, empty where the file is not there."""
    filesystem = remote_filesystem(url, retry.timeout_seconds)
    path = filesystem._strip_protocol(url)
    try:
        # fsspec's own answer for HTTP takes any failure for "not there".
        if scheme_of(url) in ("http", "https"):
            _open_http(filesystem, path, 0).close()
        else:
            filesystem.info(path)
    except FileNotFoundError:
        yield b""
    else:
        yield b"there"


def _chunks(
    url: str, retry: RetrySettings, start_bytes: int, abandoned: threading.Event
) -> Iterator[bytes]:
    """The bytes of a file from `start_bytes` on, in pieces, until nobody waits any more."""
    filesystem = remote_filesystem(url, retry.timeout_seconds)
    path = filesystem._strip_protocol(url)
    if scheme_of(url) in ("http", "https"):
        stream = _open_http(filesystem, path, start_bytes)
    else:
        stream = filesystem.open(path, "rb", block_size=_CHUNK_BYTES, cache_type="none")
        stream.seek(start_bytes)
    with closing(stream):
        is_open = True
        while is_open and not abandoned.is_set():
            chunk = bytearray()
            try:
                while len(chunk) < _CHUNK_BYTES and is_open and not abandoned.is_set():
                    part = stream.read(_CHUNK_BYTES - len(chunk))
                    chunk += part
                    is_open = bool(part)
            except BaseException:
                # What came before the connection was cut need not be fetched again.
                yield bytes(chunk)
                raise
            yield bytes(chunk)


def _open_http(filesystem: Any, path: str, start_bytes: int) -> BinaryIO:
    # As one stream: the file object for ranges reads an answer of any length into memory.
    headers = {"Accept-Encoding": "identity"}
    if start_bytes:
        headers["Range"] = f"bytes={start_bytes}-"
    stream = filesystem.open(path, "rb", block_size=0, size=1, headers=headers)
    if start_bytes and stream.r.status != 206:
        # Not every server knows ranges: what is here already goes by once more.
        while start_bytes and (passed := stream.read(min(start_bytes, _CHUNK_BYTES))):
            start_bytes -= len(passed)
    return cast(BinaryIO, stream)


def _fault_of(error: BaseException) -> _Fault:
    """Says in a few words why a try failed, showing no secret, and whether to try again."""
    if isinstance(error, _Fault):
        return error
    if isinstance(error, DataError):
        return _Fault(str(error), is_final=True)
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return _Fault("it is not there; check the URL", is_final=True)
    if isinstance(error, PermissionError) or status in (401, 403):
        return _Fault("access is denied; check URL and credentials", is_final=True)
    if isinstance(status, int):
        return _Fault(f"the server answered {status}")
    kind = type(error).__name__
    text = show_text(str(error))[:200]
    if "credential" in kind.lower():
        remedy = "set them in the environment; public buckets of S3 need FSSPEC_S3_ANON=true"
        return _Fault(f"credentials are missing or incomplete ({kind}): {remedy}", is_final=True)
    return _Fault(f"{kind}: {text}" if text else kind)
