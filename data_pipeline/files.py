"""Writing files so that they exist wholly or not at all, and saying clearly when they cannot be."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError

PARTIAL_SUFFIX = ".partial"

_RERUN = "and run the same command again: what is finished is kept"
_REMEDIES = {
    errno.EACCES: "choose a folder you may write to, or change its permissions",
    errno.EPERM: "choose a folder you may write to, or change its permissions",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOSPC: f"free some space {_RERUN}",
    errno.EDQUOT: f"free some of your quota {_RERUN}",
    errno.EFBIG: f"raise the file size limit (ulimit -f) {_RERUN}",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "one part of the path is a file: choose another folder",
    errno.EEXIST: "a file is in its place: choose another path",
    errno.EISDIR: "a folder is in its place: choose another path",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


@contextlib.contextmanager
def explaining(action: str, path: Path | str) -> Iterator[None]:
    """Turns an operating system error inside the block into a one-line `DataError`.

    Args:
        action: What the block does, as in "write" or "read".
        path: The file, folder or URL it does it to.

    Raises:
        DataError: With the path, the system's reason and what to do about it.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = _REMEDIES.get(error.errno or 0, "check the disk and run the same command again")
        raise DataError(f"cannot {action} {path}: {reason}; {remedy}") from error


def canonical_json(value: Any) -> bytes:
    """The one byte string that stands for `value`: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def readable_json(value: Any) -> bytes:
    """Deterministic JSON for people: sorted keys, indented, ASCII, one line end at the end."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=True).encode() + b"\n"


def read_json_object(path: Path, purpose: str, remedy: str) -> dict[str, Any]:
    """Reads a JSON file that must hold an object.

    Args:
        path: The file.
        purpose: What the file is, for messages ("the manifest of a data set").
        remedy: What to do where it is missing or damaged.

    Raises:
        DataError: If it is missing, unreadable, or anything else than a JSON object.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing: {purpose}; {remedy}")
    with explaining("read", path):
        data = path.read_bytes()
    return parse_json_object(data, str(path), purpose, remedy)


def parse_json_object(data: bytes, name: str, purpose: str, remedy: str) -> dict[str, Any]:
    """Reads JSON that must be an object; arguments and errors as of `read_json_object`."""
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is damaged ({error}): {purpose}; {remedy}") from error
    if not isinstance(value, dict):
        raise DataError(f"{name} is damaged (no JSON object): {purpose}; {remedy}")
    return value


def read_at(descriptor: int, size_bytes: int, offset_bytes: int) -> bytes:
    """Reads part of an open file, up to its end at most, however little the system hands out."""
    parts = []
    while size_bytes > 0:
        part = os.pread(descriptor, size_bytes, offset_bytes)
        if not part:
            break
        parts.append(part)
        size_bytes -= len(part)
        offset_bytes += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def partial_path(path: Path) -> Path:
    """The name under which `path` is written until it is complete."""
    return path.with_name(path.name + PARTIAL_SUFFIX)


def synchronize_folder(folder: Path) -> None:
    """Makes the names in `folder` durable, where the system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems refuse this; their renames are durable by other means.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Puts `data` into `path`: after a crash at any moment the old or the new content is there.

    Raises:
        DataError: If the system refuses; `path` is then as it was.
    """
    partial = partial_path(path)
    with explaining("write", path):
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            synchronize_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise


def make_folder(path: Path) -> None:
    """Creates a folder and its parents.

    Raises:
        DataError: If the system refuses.
    """
    with explaining("create the folder", path):
        path.mkdir(parents=True, exist_ok=True)


def remove_partial_files(folder: Path) -> None:
    """Removes what an interrupted run left half-written directly in `folder`.

    Raises:
        DataError: If the system refuses.
    """
    with explaining("clean up", folder):
        for path in sorted(folder.glob(f"*{PARTIAL_SUFFIX}")):
            path.unlink()
