"""One run under a launcher, watched from outside: started, hurt, and stopped."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from benchmarks.launch.commands import launch_command
from launch.curves import last_step
from launch.keep_running import newest_checkpoint
from pretrain.run_folder import RunFolder
from pretrain.telemetry.metrics import read_metrics

_POLL_SECONDS = 0.05
_PATIENCE_SECONDS = 300.0
_RANK = ["-m", "launch.cli", "pretrain"]


class Started(Protocol):
    """A launcher that runs."""

    def poll(self) -> int | None:
        """Its exit code, None before."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""


Start = Callable[[list[str], Path], Started]
"""Starts a command, its output going into a file."""


@dataclass(frozen=True)
class Timing:
    """Of one run, in seconds."""

    first_step_seconds: float
    """From the command to the first step."""
    back_seconds: float
    """From SIGKILL of a rank to the first step of the ranks that took over."""


def start_here(command: list[str], log: Path) -> Started:
    """Start a command on this machine."""
    with log.open("ab") as stream:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def time_run(launcher: str, config: Path, run: Path, start: Start) -> Timing:
    """Start a run, kill one of its ranks once there is a checkpoint, and stop it.

    Args:
        launcher: Its name.
        config: The run, which would take for ever.
        run: Its folder.
        start: Starts the launcher's command.

    Raises:
        RuntimeError: Something did not happen; the message names the launcher's output.
    """
    log = config.with_suffix(".log")
    began = time.perf_counter()
    process = start(launch_command(launcher, config), log)
    watch = _Watch(process, log)
    metrics = RunFolder(run).metrics_path
    try:
        watch.until(lambda: last_step(metrics) > 0, "the first step")
        first_step_seconds = time.perf_counter() - began
        watch.until(lambda: newest_checkpoint(run) > 0, "a checkpoint")
        ranks = ranks_of(run)
        if not ranks:
            raise RuntimeError(f"{launcher}: no rank of {run} is to be seen")
        began = time.perf_counter()
        ranks[-1].kill()
        watch.until(lambda: _steps_again(metrics), "a step after the kill")
        back_seconds = time.perf_counter() - began
        RunFolder(run).stop_request.touch()
        watch.until(lambda: RunFolder(run).stop_marker.exists(), "the run to stop")
        process.wait(_PATIENCE_SECONDS)
    finally:
        for rank in ranks_of(run):
            rank.kill()
    return Timing(first_step_seconds, back_seconds)


def ranks_of(run: Path) -> list[psutil.Process]:
    """The ranks of a run on this machine and on hosts that are namespaces of it, the newest last.

    Workers of a rank's loader look like it, but are its children.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            begins = next((i for i, word in enumerate(words) if word == "-m"), 0)
            if words[begins : begins + 3] == _RANK and any(str(run) in word for word in words):
                found.append(process)
    own = {process.pid for process in found}
    ranks = []
    for process in found:
        with contextlib.suppress(psutil.Error):
            if process.ppid() not in own:
                ranks.append((process.create_time(), process.pid, process))
    return [process for *_, process in sorted(ranks, key=lambda entry: entry[:2])]


def _steps_again(metrics: Path) -> bool:
    """Whether a step has been logged behind the newest beginning of a life of the ranks."""
    lines = read_metrics(metrics)
    begins = [number for number, line in enumerate(lines) if line.get("event") == "resume"]
    return bool(begins) and any("loss" in line for line in lines[begins[-1] :])


class _Watch:
    """Waits for things while a launcher is at work."""

    def __init__(self, process: Started, log: Path) -> None:
        self._process, self._log = process, log

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something.

        Raises:
            RuntimeError: The launcher failed, or it takes too long.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not condition():
            code = self._process.poll()
            if code not in (None, 0, 75) or time.monotonic() > deadline:
                state = "running" if code is None else f"ended with {code}"
                raise RuntimeError(f"no sign of {what}; the launcher is {state}; see {self._log}")
            time.sleep(_POLL_SECONDS)
