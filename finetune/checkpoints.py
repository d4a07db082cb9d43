"""Which of a training's checkpoints are whole.

`transformers` writes a checkpoint file by file under its final name, so that one cut short looks
like any other. Here a list of its files is put beside them when all are written; without it, or
with a file that is missing or of another size, a checkpoint does not count.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

_LIST = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")
STATE = "trainer_state.json"


def mark_complete(checkpoint: Path) -> None:
    """Note that all files of a checkpoint are written."""
    sizes = {
        str(path.relative_to(checkpoint)): path.stat().st_size
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != _LIST
    }
    write_atomically(checkpoint / _LIST, json.dumps({"files": sizes}))


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was marked and still has all its files."""
    try:
        sizes = json.loads((checkpoint / _LIST).read_text(encoding="utf-8"))["files"]
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def newest_complete(folder: Path) -> Path | None:
    """Return the newest whole checkpoint, and remove what an interruption left behind."""
    newest: tuple[int, Path] | None = None
    for path in folder.glob("checkpoint-*"):
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        if not is_complete(path):
            shutil.rmtree(path)
        elif newest is None or int(match[1]) > newest[0]:
            newest = int(match[1]), path
    return None if newest is None else newest[1]


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints of a training that is over."""
    for path in folder.glob("checkpoint-*"):
        if _NAME.fullmatch(path.name):
            shutil.rmtree(path)


def trainer_state(checkpoint: Path) -> dict[str, Any]:
    """Return what the Trainer noted of its progress."""
    state: dict[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    return state


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is there wholly or not at all."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
