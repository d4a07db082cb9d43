"""``metrics.jsonl``, one JSON object a line: reading it, and forgetting its end."""

from __future__ import annotations

import json
import math
import mmap
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a ``metrics.jsonl``; one still being written, or damaged, is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().split(b"\n"):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            records.append(value)
    return records


def drop_later_lines(path: Path, step: int, *, keep_in: Path | None = None) -> None:
    """Forget what was logged after a step: the run is about to make these steps again.

    The file is read from its end, so the cost depends on what is dropped and not on how long the
    run has been going on. Steps never fall from one line to the next: whatever makes steps anew
    drops the old ones first.

    Args:
        path: ``metrics.jsonl``; a last line cut short by a kill is dropped as well.
        step: The step that is gone back to; its own lines stay.
        keep_in: File that the dropped lines are appended to; by default they are gone.
    """
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("r+b") as stream:
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            end = _end_of_step(content, step)
            later = content[end : content.rfind(b"\n") + 1] if keep_in is not None else b""
        if keep_in is not None and later:
            with keep_in.open("ab") as kept:
                kept.write(later)
        stream.truncate(end)


def _end_of_step(content: mmap.mmap, step: int) -> int:
    """Where the last line of this step or an earlier one ends."""
    end = content.rfind(b"\n") + 1
    while end:
        start = content.rfind(b"\n", 0, end - 1) + 1
        if _step_of(content[start:end]) <= step:
            return end
        end = start
    return 0


def _step_of(line: bytes) -> float:
    """The step of a line; infinity where it has none, as every line of ours has one."""
    try:
        value = json.loads(line)
    except ValueError:
        return math.inf
    step = value.get("step") if isinstance(value, dict) else None
    return step if isinstance(step, int) else math.inf
