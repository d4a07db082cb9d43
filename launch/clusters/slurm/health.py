"""The examination of a job's nodes before their ranks start."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any

# Python from a cold network file system takes long, on a thousand nodes at once.
LONGEST_SECONDS = 120.0


def failed_hosts(hosts: Sequence[str], output: str) -> dict[str, str]:
    """Reads what the examination printed.

    Args:
        hosts: The nodes, in the order of srun's tasks.
        output: Lines `TASK: PART`; the parts of a task together are its JSON object.

    Returns:
        The nodes that cannot take part, each with the reason.
    """
    # srun cuts long lines and labels every piece.
    pieces: dict[int, list[str]] = {}
    for line in output.splitlines():
        task, _, piece = line.partition(": ")
        if task.strip().isdecimal():
            pieces.setdefault(int(task), []).append(piece)
    findings = {task: _findings("".join(parts)) for task, parts in pieces.items()}
    failed = {}
    for place, host in enumerate(hosts):
        found = findings.get(place)
        if found is None:
            failed[host] = "gave no answer to the check of nodes"
            continue
        reasons = [
            f"{finding.get('name')}: {finding.get('value')}"
            for finding in found
            if finding.get("state") == "fail"
        ]
        if reasons:
            failed[host] = "; ".join(reasons)
    return failed


def _findings(text: str) -> list[dict[str, Any]] | None:
    """What one node said, none where that is not the answer of the check."""
    try:
        answer, _ = json.JSONDecoder().raw_decode(text, text.index("{"))
        return [finding for finding in answer["findings"] if isinstance(finding, dict)]
    except (ValueError, KeyError, TypeError):
        return None


def examine(step: Sequence[str], hosts: Sequence[str]) -> dict[str, str]:
    """Runs the examination on all nodes at once.

    Args:
        step: The srun command.
        hosts: The nodes, in the order of its tasks.

    Returns:
        The nodes that cannot take part, each with the reason.

    Raises:
        OSError: srun cannot be started.
    """
    process = subprocess.Popen(
        step, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
    )
    try:
        output, _ = process.communicate(timeout=LONGEST_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    return failed_hosts(hosts, output)
