"""Runs under the project's own launcher, watched from outside."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from launch.curves import last_step
from launch.keep_running import RunResult
from launch.local import run_local
from pretrain.run_folder import RunFolder


@contextlib.contextmanager
def output_into(log: Path) -> Iterator[None]:
    """Sends what this process and its children print into a file."""
    sys.stdout.flush()
    kept = os.dup(1), os.dup(2)
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        for number, descriptor in enumerate(kept, 1):
            os.dup2(descriptor, number)
            os.close(descriptor)


def run(
    config: Path,
    *overrides: str,
    processes: int,
    watch: Callable[[], None] | None = None,
    max_restarts: int = 0,
) -> RunResult:
    """``spade pretrain`` as ranks under the launcher, to its end.

    Raises:
        RuntimeError: It failed; the message names its log.
    """
    log = config.with_suffix(".log")
    with output_into(log):
        result = run_local(
            [str(config), *overrides], processes=processes, watch=watch, max_restarts=max_restarts
        )
    if result.exit_code != 0:
        raise RuntimeError(f"{config.stem} ended with code {result.exit_code}; see {log}")
    return result


class FirstStep:
    """Watches for the first step after a place; a launcher calls it ten times a second.

    Attributes:
        seconds: From making this object to the step's line in the metrics; None before.
    """

    def __init__(self, run_path: Path, after_step: int = 0) -> None:
        self._metrics = RunFolder(run_path).metrics_path
        self._after_step = after_step
        self._started = time.perf_counter()
        self.seconds: float | None = None

    def __call__(self) -> None:
        """Look."""
        if self.seconds is None and last_step(self._metrics) > self._after_step:
            self.seconds = time.perf_counter() - self._started


def ranks_of(launcher: psutil.Process) -> list[psutil.Process]:
    """The processes below one that train, or are about to; without what these start."""
    found = []
    for process in launcher.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "launch.cli" in process.cmdline() and process.environ().get("RANK"):
                found.append(process)
    own = {process.pid for process in found}
    return [process for process in found if process.ppid() not in own]
