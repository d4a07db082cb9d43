"""Whether a folder is one and the same on all machines: each writes there, all others read it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

# A network file system shows a new file to other machines only after some seconds.
WAIT_SECONDS = 10.0
_LOOK_EVERY_SECONDS = 0.2


def note_path(folder: Path, word: str, writer: str) -> Path:
    """The file of one machine.

    Args:
        folder: The folder.
        word: What no other examination uses.
        writer: Number of the machine.
    """
    return folder / f".spade-doctor-{word}-{writer}"


def leave_note(folder: Path, word: str, writer: str) -> Path:
    """Write this machine's file.

    Raises:
        OSError: If that is not possible.
    """
    path = note_path(folder, word, writer)
    path.write_text(writer, encoding="utf-8")
    return path


def unseen_notes(
    folder: Path, word: str, writers: Mapping[str, str], wait_seconds: float = WAIT_SECONDS
) -> list[str]:
    """Wait for the files of all others.

    Args:
        folder: The folder as this machine names it.
        word: That of this examination.
        writers: Numbers of the machines, and their names.
        wait_seconds: How long.

    Returns:
        The names of those whose files did not appear.
    """
    missing = dict(writers)
    until = time.monotonic() + wait_seconds
    while True:
        for writer in list(missing):
            if _reads(note_path(folder, word, writer), writer):
                del missing[writer]
        if not missing or time.monotonic() > until:
            return list(missing.values())
        time.sleep(_LOOK_EVERY_SECONDS)


def _reads(path: Path, expected: str) -> bool:
    try:
        return path.read_text(encoding="utf-8", errors="replace") == expected
    except OSError:
        return False
