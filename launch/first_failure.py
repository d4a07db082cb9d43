"""Which rank failed first: one error for the user, not those of all who lost that rank.

Every rank that fails leaves a small file (:mod:`pretrain.resilience.failures`). Two clocks do not
agree to the millisecond, and a rank that was killed cannot say when, so what a failure looks like
counts before its time: one that follows from another's is only told where there is nothing else.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from launch.console import printable, warn
from launch.rank_output import output_name

if TYPE_CHECKING:
    from pretrain.resilience.failures import Failure

# What gloo and NCCL say when a peer is gone, or does not answer any more.
_LOST_A_PEER = re.compile(
    r"gloo/|NCCL|Connection (closed|reset|refused)|Broken pipe|Socket Timeout|timed out|"
    r"^Dist(Backend|Network|Store)?Error"
)


def clear_failures(run: Path) -> None:
    """Forget the failures of an earlier start; call it before each.

    Raises:
        OSError: If they cannot be removed.
    """
    from pretrain.resilience.failures import failures_folder
    from pretrain.run_folder import RunFolder

    folder = failures_folder(RunFolder(run).logs)
    if folder.is_dir():
        shutil.rmtree(folder)


def read_failures(run: Path) -> list[Failure]:
    """All failures since the last start, the likeliest cause first; damaged files are left out."""
    from pretrain.resilience.failures import Failure, failures_folder
    from pretrain.run_folder import RunFolder

    types = {"rank": int, "exit_code": int, "unix_seconds": float, "host": str, "message": str}
    found = []
    for path in failures_folder(RunFolder(run).logs).glob("rank-*.json"):
        try:
            value = json.loads(path.read_bytes())
            value["unix_seconds"] = float(value["unix_seconds"])
            if all(type(value[name]) is kind for name, kind in types.items()):
                found.append(Failure(**{item.name: value[item.name] for item in fields(Failure)}))
        except (OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError):
            continue
    return sorted(found, key=place_among_causes)


def place_among_causes(failure: Failure) -> tuple[int, float, int]:
    """Sorts failures: causes, what may be one, ranks that lost another, ranks that were asked."""
    from pretrain.resilience.ending import LOST_EXIT_CODE

    code = failure.exit_code
    if code in (-signal.SIGTERM, 128 + signal.SIGTERM):
        likely = 3
    elif code == LOST_EXIT_CODE:
        likely = 2
    elif code == -signal.SIGABRT or (code >= 0 and _LOST_A_PEER.search(failure.message)):
        likely = 1  # NCCL ends a process whose peer is gone by SIGABRT
    else:
        likely = 0
    return likely, failure.unix_seconds, failure.rank


def first_failure(run: Path) -> Failure | None:
    """The failure that caused the others; none where no rank has left word."""
    return next(iter(read_failures(run)), None)


def tell_first_failure(run: Path) -> Failure | None:
    """Print the first failure and where to read more, if a rank has left word.

    Returns:
        The failure.
    """
    failures = read_failures(run)
    for line in failure_lines(run, failures):
        warn(line)
    return failures[0] if failures else None


def failure_lines(run: Path, failures: list[Failure]) -> list[str]:
    """Puts the first of some failures into lines.

    Args:
        run: The run's folder.
        failures: Sorted, as `read_failures` gives them.
    """
    from pretrain.run_folder import RunFolder

    if not failures:
        return []
    first = failures[0]
    logs = RunFolder(run).logs
    message = printable(first.message.removeprefix(f"rank {first.rank}: "))
    moment = time.strftime("%H:%M:%S", time.localtime(first.unix_seconds))
    places = [logs / printable(first.log)]
    output = logs / output_name(first.rank)
    if output.is_file() and output.stat().st_size:
        places.append(output)
    lines = [
        f"first failure: rank {first.rank} on {printable(first.host)} at {moment}: {message}",
        f"log: {', '.join(str(place) for place in places)}",
    ]
    if others := len(failures) - 1:
        ranks = "rank" if others == 1 else "ranks"
        lines.append(f"({others} other {ranks} ended because of it)")
    return lines
