"""Nodes that have failed a check, in ``launch/excluded.json`` of a run."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.run_folder import RunFolder, write_json

EXCLUDED_SECONDS = 24 * 3600.0
"""How long a node that has failed is left out; deleting the file takes it back at once."""


def excluded_hosts(run: Path, now: float | None = None) -> dict[str, str]:
    """The nodes that have failed within the last day, and why; a damaged file excludes none."""
    now = time.time() if now is None else now
    return {
        entry["host"]: entry["reason"]
        for entry in _read(run)
        if now - entry["unix_seconds"] < EXCLUDED_SECONDS
    }


def exclude_hosts(run: Path, reasons: Mapping[str, str]) -> None:
    """Note nodes that have failed now.

    Raises:
        OSError: If the file cannot be written.
    """
    others = [entry for entry in _read(run) if entry["host"] not in reasons]
    new = [
        {"host": host, "reason": reason, "unix_seconds": time.time()}
        for host, reason in reasons.items()
    ]
    write_json(_path(run), [*others, *new])


def _path(run: Path) -> Path:
    return RunFolder(run).launch / "excluded.json"


def _read(run: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads(_path(run).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    kinds: dict[str, type | tuple[type, ...]] = {
        "host": str,
        "reason": str,
        "unix_seconds": (int, float),
    }
    return [
        entry
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict)
        and all(isinstance(entry.get(key), kind) for key, kind in kinds.items())
    ]
