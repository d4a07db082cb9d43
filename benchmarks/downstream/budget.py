"""Runs a command until it ends or has spent its processor time."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

EXIT_STOPPED = 75
"""Of a command that was asked to stop and can go on."""
_LOOK_SECONDS = 0.5


class Budget:
    """What a command has spent, in a file that outlives this process.

    Args:
        path: The file.
        seconds: Most user and system time, over all attempts.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self._path, self._seconds = path, seconds

    @property
    def spent_seconds(self) -> float:
        """User and system time of all attempts."""
        return float(self._read()["cpu_seconds"])

    @property
    def is_over(self) -> bool:
        """Whether the command has ended, by itself or by the budget."""
        return bool(self._read()["over"])

    def run(self, command: Sequence[str], *, one_thread: bool) -> None:
        """Run a command; it is asked to stop with SIGTERM when all is spent.

        Args:
            command: Saves what it has on SIGTERM and ends with code 75; started again it goes on.
            one_thread: Whether its numerical libraries get a single thread.

        Raises:
            RuntimeError: It fails.
        """
        before, stopped = self.spent_seconds, False
        threads = {"OMP_NUM_THREADS": "1"} if one_thread else {}
        process = psutil.Popen(list(command), env=os.environ | threads)
        used = before
        while process.poll() is None:
            used = max(used, before + _cpu_seconds(process))
            self._write(used, over=False)
            if used >= self._seconds and not stopped:
                process.send_signal(signal.SIGTERM)
                stopped = True
            time.sleep(_LOOK_SECONDS)
        # Where all was spent before it is stopped before it can answer.
        expected = (0, EXIT_STOPPED, -signal.SIGTERM) if stopped else (0,)
        if process.returncode not in expected:
            raise RuntimeError(f"{' '.join(command)} ended with code {process.returncode}")
        self._write(used, over=True)

    def _read(self) -> dict[str, float | bool]:
        if not self._path.exists():
            return {"cpu_seconds": 0.0, "over": False}
        found: dict[str, float | bool] = json.loads(self._path.read_text(encoding="utf-8"))
        return found

    def _write(self, cpu_seconds: float, *, over: bool) -> None:
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps({"cpu_seconds": round(cpu_seconds, 1), "over": over}))
        partial.replace(self._path)


def _cpu_seconds(process: psutil.Process) -> float:
    """User and system time of a process and of what it started."""
    total = 0.0
    try:
        for one in (process, *process.children(recursive=True)):
            times = one.cpu_times()
            total += times.user + times.system
            if one == process:
                total += times.children_user + times.children_system
    except psutil.NoSuchProcess:
        return 0.0  # it has just ended; what was seen before counts
    return total
