"""How the command ends when something goes wrong: one line, one exit code.

0 is done, 1 failed, 2 bad usage, 75 stopped on request and resumable, 128 + n ended by signal n
(130 for Ctrl-C). A traceback appears only where SPADE_TRACEBACK=1 asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_RESUMABLE = 75
EXIT_INTERRUPTED = 130


class CommandError(ValueError):
    """Something the user can cause and mend; the message says what, where and the remedy."""


class StageFailed(Exception):
    """A child process failed and has said why itself, so that only its place remains to be told."""


class Stopped(BaseException):
    """The user or a scheduler asked the command to stop, and it has cleaned up.

    Not an ``Exception``: code that survives errors must not survive this.

    Attributes:
        exit_code: What the command ends with.
    """

    def __init__(self, message: str, exit_code: int = EXIT_INTERRUPTED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def wants_traceback() -> bool:
    """Tells whether the user asked for tracebacks by SPADE_TRACEBACK=1."""
    return os.environ.get("SPADE_TRACEBACK") == "1"


def describe(error: BaseException) -> Sequence[str]:
    """Puts an error into lines for the user.

    Args:
        error: What ended the command.

    Returns:
        One line for one problem. A configuration with three mistakes has three.
    """
    if isinstance(error, OSError) and error.strerror:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return [": ".join([error.strerror, " -> ".join(names)] if names else [error.strerror])]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, (ValueError, OSError, StageFailed)):
        return lines or [type(error).__name__]
    if isinstance(error, MemoryError):
        return ["out of memory: use a smaller batch, a shorter sequence or a smaller model"]
    reason = lines[0] if lines else "no further reason given"
    return [f"{type(error).__name__}: {reason} (SPADE_TRACEBACK=1 shows where)"]


def prefix_of_rank() -> str:
    """Names the rank in a message when this process is one of several, e.g. ``"rank 1: "``."""
    if int(os.environ.get("WORLD_SIZE", "1") or 1) < 2:
        return ""
    return f"rank {os.environ.get('RANK', '?')}: "
