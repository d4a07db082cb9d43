"""Where corpora lie: local paths, patterns and URLs, listed and opened in one place.

Local files go the direct way. URLs, of the schemes that `data_pipeline.remote.locations` allows, go
through `fsspec`, which is loaded only then. A read that fails is tried again from where it stopped.
"""

from __future__ import annotations

import fnmatch
import functools
import io
import os
import re
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from data_pipeline.errors import DataError
from data_pipeline.remote.locations import REMOTE_SCHEMES, scheme_of, show_text, show_url

_MAGIC = re.compile(r"[*?\[]")
_BUFFER_BYTES = 2**20
_REMOTE_BUFFER_BYTES = 2**22
_ATTEMPTS = 4
_FIRST_PAUSE_SECONDS = 0.5
_TIMEOUT_SECONDS = 60
# What a store calls the version of a file, in the order of how much it says.
_VERSION_FIELDS = ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "Last-Modified", "mtime")
# Nothing changes these by trying again.
_FINAL_ERRORS = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)

_T = TypeVar("_T")

Location = Path | str


class Found(NamedTuple):
    """One file as a listing shows it.

    Attributes:
        location: Where it is: a path, or a URL as text.
        name: Its name relative to what was listed, with "/".
        size_bytes: Its length, or None where the server does not tell.
        version: Changes when the file does; empty where nothing is known.
    """

    location: Location
    name: str
    size_bytes: int | None
    version: str


class Listing(NamedTuple):
    """What lies at a location: one file, or all files of a folder or pattern in order of name."""

    files: list[Found]
    is_single: bool


def list_location(location: Location) -> Listing:
    """Lists the files at a location.

    Entries whose names begin with a dot, and links to folders, are left out of folders.

    Args:
        location: A file; a folder, listed through all levels; or a pattern of both with `*`, `?`,
            `[...]` and `**` for any number of levels. Over http(s), a file.

    Raises:
        DataError: If there is nothing, or the system refuses.
    """
    if isinstance(location, Path):
        return _list_local(location)
    return _list_remote(location)


def searched_folder(location: Location) -> Path | None:
    """The local folder that is searched through all levels for a location, if any is."""
    if not isinstance(location, Path):
        return None
    root, pattern = _split_pattern(str(location))
    if "**" in pattern and not location.exists():
        location = Path(root or ".")
    return location if location.is_dir() else None


def open_location(location: Location) -> BinaryIO:
    """Opens a file for reading bytes; it can be sought in.

    Raises:
        OSError: If a local file cannot be opened.
        DataError: If a remote one cannot, then or while reading.
    """
    if isinstance(location, Path):
        return location.open("rb", buffering=_BUFFER_BYTES)
    return io.BufferedReader(_RemoteFile(location), _REMOTE_BUFFER_BYTES)


def _list_local(path: Path) -> Listing:
    if path.is_dir():
        return Listing(_walk(path, path), is_single=False)
    if path.is_file():
        return Listing([_local(path, path.name)], is_single=True)
    root, pattern = _split_pattern(str(path))
    if pattern and Path(root or ".").is_dir():
        folder = Path(root or ".")
        depth = None if "**" in pattern else len(pattern)
        found = [file for file in _walk(folder, folder, depth) if _matches(file.name, pattern)]
        if found:
            return Listing(found, is_single=False)
        raise DataError(f"the corpus pattern {path} matches no file: check the spelling")
    raise DataError(f"the corpus path {path} does not exist: check the spelling")


def _walk(folder: Path, root: Path, depth: int | None = None) -> list[Found]:
    def refuse(error: OSError) -> None:
        raise DataError(
            f"cannot list {error.filename}: {error.strerror}; change its permissions"
        ) from error

    found = []
    for current, subfolders, names in os.walk(folder, onerror=refuse):
        level = len(Path(current).relative_to(root).parts) + 1
        subfolders[:] = [
            name for name in subfolders if not name.startswith(".") and (depth or level + 1) > level
        ]
        for name in names:
            path = Path(current) / name
            if not name.startswith(".") and path.is_file():
                found.append(_local(path, path.relative_to(root).as_posix()))
    return sorted(found, key=lambda file: file.name)


def _local(path: Path, name: str) -> Found:
    state = path.stat()
    return Found(path, name, state.st_size, f"{state.st_mtime_ns} {state.st_ino}")


def _split_pattern(text: str) -> tuple[str, list[str]]:
    """The parts before the first that is a pattern, and the rest."""
    parts = text.split("/")
    first = next((n for n, part in enumerate(parts) if _MAGIC.search(part)), len(parts))
    root = "/".join(parts[:first])
    return root + ("/" if first == 1 and text.startswith("/") else ""), parts[first:]


def _matches(name: str, pattern: list[str]) -> bool:
    def match(parts: list[str], wanted: list[str]) -> bool:
        if not wanted:
            return not parts
        if wanted[0] == "**":
            return match(parts, wanted[1:]) or (bool(parts) and match(parts[1:], wanted))
        if not parts or not fnmatch.fnmatchcase(parts[0], wanted[0]):
            return False
        return match(parts[1:], wanted[1:])

    return match(name.split("/"), pattern)


def _list_remote(url: str) -> Listing:
    system = _filesystem(url)
    scheme = scheme_of(url)
    root, pattern = _split_pattern(url)
    if scheme in ("http", "https"):
        name = unquote(urlsplit(url).path).rpartition("/")[2]
        if not name:
            raise DataError(f"{show_url(url)} is no file: over http(s) each file must be named")
        return Listing([_remote(url, name, _trying(url, lambda: system.info(url)))], is_single=True)
    if not pattern:
        information = _trying(url, lambda: system.info(url))
        if information["type"] != "directory":
            return Listing([_remote(url, url.rpartition("/")[2], information)], is_single=True)
    entries = _trying(url, lambda: system.find(root, detail=True))
    prefix = str(system._strip_protocol(root)).rstrip("/") + "/"
    found = []
    for path, information in entries.items():
        name = path.removeprefix(prefix)
        is_hidden = any(part.startswith(".") for part in name.split("/"))
        if not is_hidden and (not pattern or _matches(name, pattern)):
            found.append(_remote(f"{scheme}://{path}", name, information))
    if not found:
        raise DataError(f"the corpus URL {show_url(url)} holds no file: check the spelling")
    return Listing(sorted(found, key=lambda file: file.name), is_single=False)


def _remote(url: str, name: str, information: dict[str, Any]) -> Found:
    size = information.get("size")
    versions = (information.get(field) for field in _VERSION_FIELDS)
    version = next((str(value) for value in versions if value), "")
    return Found(url, name, size if isinstance(size, int) else None, version)


@functools.cache
def _filesystem_of(scheme: str) -> Any:
    fsspec = import_module("fsspec")
    import_module(REMOTE_SCHEMES[scheme])
    options: dict[str, Any] = {}
    if scheme in ("http", "https"):
        aiohttp = import_module("aiohttp")
        # No limit on the whole of a long file, but one on every silence.
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_TIMEOUT_SECONDS, sock_read=_TIMEOUT_SECONDS
        )
        options["client_kwargs"] = {"timeout": timeout}
    return fsspec.filesystem(scheme, use_listings_cache=False, **options)


def _filesystem(url: str) -> Any:
    scheme = scheme_of(url)
    assert scheme in REMOTE_SCHEMES, scheme
    try:
        return _filesystem_of(scheme)
    except ImportError as error:
        raise DataError(
            f"cannot read {show_url(url)}: {scheme}:// needs the package {REMOTE_SCHEMES[scheme]}: "
            'pip install "spade-pretrain[remote]"'
        ) from error


def _trying(url: str, action: Callable[[], _T], attempts: int = _ATTEMPTS) -> _T:
    """Does something remote, several times if need be.

    Raises:
        DataError: If it fails each time, or for a reason that stays.
    """
    for attempt in range(attempts):
        try:
            return action()
        except DataError:
            raise
        # Every store has exceptions of its own.
        except Exception as error:
            if isinstance(error, _FINAL_ERRORS) or attempt + 1 == attempts:
                cause = show_text(str(error))[:200] or type(error).__name__
                raise DataError(
                    f"cannot read {show_url(url)} ({attempt + 1} attempts, the last: {cause}): "
                    "check URL, network and credentials, and run the same command again"
                ) from error
            time.sleep(_FIRST_PAUSE_SECONDS * 2**attempt)
    raise AssertionError("unreachable: the last attempt returns or raises")


class _RemoteFile(io.RawIOBase):
    """A remote file that goes on after a cut connection, also where the server has no ranges."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._system = _filesystem(url)
        self._position = 0
        self._stream: Any = None
        self._stream_position = 0
        self._has_ranges = True
        size = _trying(url, lambda: self._system.info(url)).get("size")
        self._size_bytes: int | None = size if isinstance(size, int) else None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END and self._size_bytes is None:
            raise DataError(
                f"the server does not tell how long {show_url(self._url)} is: download it first"
            )
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size_bytes or 0}
        self._position = max(0, base[whence] + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self._size_bytes is not None and self._position >= self._size_bytes:
            return 0
        data = _trying(self._url, lambda: self._read(len(buffer)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._drop()
        super().close()

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _read(self, size_bytes: int) -> bytes:
        if not self._has_ranges and self._stream_position > self._position:
            self._drop()
        try:
            self._go_to_position()
            data: bytes = self._stream.read(size_bytes)
            if not data and self._size_bytes is not None:
                raise OSError(
                    f"the connection ended at byte {self._position} of {self._size_bytes}"
                )
        except Exception as error:
            self._drop()
            # What fsspec says of a web server that sends the whole file whatever part is asked for.
            if isinstance(error, ValueError) and "range" in str(error):
                self._has_ranges = False
            raise
        self._stream_position += len(data)
        return data

    def _go_to_position(self) -> None:
        if self._stream is None:
            block_bytes = _REMOTE_BUFFER_BYTES if self._has_ranges else 0
            self._stream = self._system.open(self._url, "rb", block_size=block_bytes)
            self._stream_position = 0
        if self._has_ranges and self._stream_position != self._position:
            self._stream.seek(self._position)
            self._stream_position = self._position
        while (missing_bytes := self._position - self._stream_position) > 0:
            skipped_bytes = len(self._stream.read(min(missing_bytes, _REMOTE_BUFFER_BYTES)))
            if skipped_bytes == 0:
                raise OSError(f"the connection ended before byte {self._position}")
            self._stream_position += skipped_bytes
