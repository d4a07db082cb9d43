"""What a rank that fails leaves behind for its launcher: one small file in ``logs/failures``.

When one rank fails all others follow within a second, each with an error of its own. The launcher
tells the first of them (:mod:`launch.first_failure`). Only the standard library is imported here.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pretrain.run_folder import write_json

LOG_FOLDER_VARIABLE = "SPADE_LOG_FOLDER"
"""Set by a launcher, for what fails before it has read where its run lies."""

_LONGEST_MESSAGE = 2000


@dataclass(frozen=True)
class Failure:
    """How one rank failed."""

    rank: int
    host: str
    unix_seconds: float
    """When, by the host's clock. A rank that was killed cannot say: that is when it was noticed."""
    exit_code: int
    """Negative for a signal."""
    message: str
    """One line."""
    log: str
    """Name of the rank's log."""


def failures_folder(log_folder: Path) -> Path:
    """Where the files lie."""
    return log_folder / "failures"


def failure_file(log_folder: Path, rank: int) -> Path:
    """The file of a rank."""
    return failures_folder(log_folder) / f"rank-{rank:05d}.json"


def log_name(rank: int) -> str:
    """Name of a rank's log within the folder of logs."""
    return f"rank-{rank:05d}.log"


def log_folder_of_launcher(environment: Mapping[str, str]) -> Path | None:
    """The folder of logs, where a launcher has told it."""
    text = environment.get(LOG_FOLDER_VARIABLE)
    return Path(text) if text else None


def record_failure(
    log_folder: Path,
    rank: int,
    message: str,
    exit_code: int,
    *,
    unix_seconds: float | None = None,
) -> bool:
    """Leave word of a failure, unless the rank has done so already: what it said first counts.

    Never raises: a file system that fails is a likely reason to be here.

    Args:
        log_folder: The run's folder of logs.
        rank: Which rank failed.
        message: Why; the first line counts.
        exit_code: What it ends with, negative for a signal.
        unix_seconds: When; by default now.

    Returns:
        Whether the file is there.
    """
    path = failure_file(log_folder, rank)
    first_line = next((line.strip() for line in message.splitlines() if line.strip()), "")
    failure = Failure(
        rank=rank,
        host=socket.gethostname(),
        unix_seconds=time.time() if unix_seconds is None else unix_seconds,
        exit_code=exit_code,
        message=first_line[:_LONGEST_MESSAGE] or "no reason given",
        log=log_name(rank),
    )
    with contextlib.suppress(Exception):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, asdict(failure))
        return True
    return False


def forget_failure(log_folder: Path, rank: int) -> None:
    """Remove what this rank left behind when it failed the last time."""
    with contextlib.suppress(OSError):
        failure_file(log_folder, rank).unlink()


def describe_failure(error: BaseException) -> str:
    """An error in one line; what a user can cause says so itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, MemoryError):
        return "out of memory: use a smaller batch, a shorter sequence or a smaller model"
    if isinstance(error, ValueError) and lines:
        return lines[0]
    return ": ".join([type(error).__name__, *lines[:1]])


@contextlib.contextmanager
def recorded_errors(rank: int, log_folder: Path | None) -> Iterator[None]:
    """Leaves word of an exception that ends the block; what is to be told later counts no more.

    Args:
        rank: Of this process.
        log_folder: The run's folder of logs; none where it is not known, and nothing is left.
    """
    try:
        yield
    except Exception as error:
        if log_folder is not None:
            record_failure(log_folder, rank, describe_failure(error), 1)
        raise
