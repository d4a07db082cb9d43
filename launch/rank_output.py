"""What a rank prints: the first rank's goes to the terminal, the others' each to a file.

The file takes file descriptors 1 and 2 themselves, so that what C++ and the driver say before a
crash is kept as well.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from logging.handlers import RotatingFileHandler
from pathlib import Path

OUTPUT_VARIABLE = "SPADE_RANK_OUTPUT"
"""`file` where a launcher shows the first rank alone."""


def output_name(rank: int) -> str:
    """Name of the file within the folder of logs."""
    return f"rank-{rank:05d}.out"


def send_output_to_file(
    rank: int,
    log_folder: Path,
    environment: Mapping[str, str],
    *,
    most_bytes: int,
    files: int,
) -> None:
    """Let this process, and what it starts, print into its file, if the launcher wants it so.

    Args:
        rank: Of this process; the first one prints where it always did.
        log_folder: The run's folder of logs.
        environment: Holds what the launcher wants.
        most_bytes: A file that is larger is put aside first.
        files: How many are kept.

    Raises:
        OSError: If the file cannot be written.
    """
    if rank == 0 or environment.get(OUTPUT_VARIABLE) != "file":
        return
    log_folder.mkdir(parents=True, exist_ok=True)
    path = log_folder / output_name(rank)
    if path.exists() and path.stat().st_size > most_bytes:
        RotatingFileHandler(path, backupCount=files - 1, delay=True).doRollover()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)  # a killed process loses what is not written
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
