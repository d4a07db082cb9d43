"""How a rank ends that cannot go on: what it was doing goes to a file, then it is gone at once.

``os._exit`` and not an exception: the main thread may sit in a call that never returns, and nothing
of the interpreter's orderly end may wait for it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from pretrain.resilience.failures import record_failure

HUNG_EXIT_CODE = 81
"""Exit code of a rank that made no progress within the watchdog's limit."""
LOST_EXIT_CODE = 82
"""Exit code of a rank that ended because another one was dead, failed or out of reach."""

_LAST_WORDS_SECONDS = 5.0


def stacks_path(log_folder: Path, rank: int) -> Path:
    """The file for the stacks of a rank's threads."""
    return log_folder / f"rank-{rank:05d}-stacks.txt"


def write_stacks(path: Path, reason: str, last_operations: list[str]) -> None:
    """Append the stacks of all threads of this process to a file.

    Args:
        path: The file.
        reason: Why, in one line.
        last_operations: Lines on the last collective operations.

    Raises:
        OSError: If the file cannot be written.
    """
    with path.open("a", encoding="utf-8") as stream:
        moment = time.strftime("%Y-%m-%d %H:%M:%S")
        stream.write(f"=== {moment}, process {os.getpid()}: {reason}\n")
        stream.write("last collective operations, the newest at the end:\n")
        stream.writelines(f"{line}\n" for line in last_operations or ["none"])
        stream.write("\n")
        stream.flush()
        faulthandler.dump_traceback(stream, all_threads=True)
        stream.write("\n")


def end_process(
    code: int,
    rank: int,
    reason: str,
    log_folder: Path,
    last_operations: Callable[[], list[str]],
    announce: Callable[[], None] | None = None,
) -> NoReturn:
    """Say why, write the stacks, leave with ``code``; within seconds even where writing hangs.

    Args:
        code: Exit code.
        rank: Of this process.
        reason: One line for the user, without the rank.
        log_folder: Folder for the stacks and for the word that launchers look for.
        last_operations: Lines on the last collective operations, which go there too.
        announce: Tells the other ranks; may block or fail.
    """
    line = f"rank {rank}: {reason}; ends with exit code {code}"
    path = stacks_path(log_folder, rank)

    def tell() -> None:
        with contextlib.suppress(OSError, ValueError):
            print(f"error: {line}; stacks: {path}", file=sys.stderr, flush=True)

    def write() -> None:
        record_failure(log_folder, rank, reason, code)
        with contextlib.suppress(Exception):
            write_stacks(path, line, last_operations())

    def announce_quietly() -> None:
        if announce is not None:
            with contextlib.suppress(Exception):
                announce()

    # A file system, a terminal or a network that hangs is a likely reason to be here, so none of
    # the three waits for another, and nothing for them longer than this.
    deadline = time.monotonic() + _LAST_WORDS_SECONDS
    threads = [
        threading.Thread(target=target, name="last-words", daemon=True)
        for target in (tell, write, announce_quietly)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    os._exit(code)
