"""What launchers did with a run, one JSON object a line in ``launch/events.jsonl``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

_NAME = "events.jsonl"


def append_event(run: Path, launcher: str, event: str, **facts: Any) -> None:
    """Add a line.

    Args:
        run: The run's folder.
        launcher: local, slurm, ssh, mpi or kubernetes.
        event: submitted, started, failed, restarted, stopped, requeued, chained or done.
        facts: What else is worth knowing, as plain data: job, nodes, reason, exit_code.

    Raises:
        OSError: If the file cannot be written.
    """
    from pretrain.run_folder import RunFolder

    folder = RunFolder(run).launch
    folder.mkdir(parents=True, exist_ok=True)
    line = {"unix_seconds": time.time(), "launcher": launcher, "event": event, **facts}
    with (folder / _NAME).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def read_events(run: Path) -> list[dict[str, Any]]:
    """All lines of a run, the oldest first; none where no launcher has touched it.

    A line that a crash has cut is left out.
    """
    from pretrain.run_folder import RunFolder

    try:
        text = (RunFolder(run).launch / _NAME).read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return []
    events = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            events.append(value)
    return events
