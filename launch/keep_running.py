"""Starts a run's ranks again after failures, whatever starts them: the loop of all launchers."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from launch.attempts import Attempts
from launch.console import warn
from launch.failures import EXIT_RESUMABLE, CommandError
from launch.processes import ProcessResult, StopRequests
from launch.restarts import Restarts


@dataclass(frozen=True)
class RunResult:
    """How the ranks of a run ended.

    Attributes:
        exit_code: 0 done, 75 stopped on request and resumable, anything else failed.
        stopped: The run stopped on request and left its marker: the same command goes on.
        signals: Requests to stop that this process received meanwhile, in order.
        seconds: Wall-clock time, with starting and ending.
        restarts: How often the ranks were started again after a failure.
    """

    exit_code: int
    stopped: bool
    signals: tuple[signal.Signals, ...]
    seconds: float
    restarts: int = 0


def newest_checkpoint(run: Path) -> int:
    """Gives the step of a run's newest complete checkpoint, -1 without one."""
    from pretrain.run_folder import RunFolder

    steps = [
        int(path.parent.name.partition("-")[2])
        for path in RunFolder(run).checkpoints.glob("step-*/manifest.json")
        if path.parent.name.partition("-")[2].isdecimal()  # not one that is being written
    ]
    return max(steps, default=-1)


def keep_running(
    start: Callable[[], ProcessResult],
    *,
    stop_marker: Path,
    max_restarts: int = 0,
    step_of_checkpoint: Callable[[], int] | None = None,
    wait_until_ready: Callable[[StopRequests], bool] | None = None,
    attempts: Attempts | None = None,
) -> RunResult:
    """Starts the ranks, waits for their end, and starts them again as long as that helps.

    Whether it helps is decided by :class:`launch.restarts.Restarts`.

    Args:
        start: Starts all ranks once and waits until they have ended. It passes the stop signals of
            this process on to them and tells of them in its result.
        stop_marker: File that rank 0 writes when the run stopped on request; removed first.
        max_restarts: Restarts in a row without a newer checkpoint.
        step_of_checkpoint: Gives the step of the newest complete checkpoint, -1 without one.
        wait_until_ready: Waits, before a restart, until the machines are there again, or a stop is
            requested; tells whether they are.
        attempts: Writes each start and end down, and tells the first failure above all else.

    Raises:
        CommandError: ``max_restarts`` is negative.
        OSError: A file cannot be removed or a process not started.
    """
    if max_restarts < 0:
        raise CommandError(f"max_restarts: {max_restarts} is negative; 0 never restarts")
    newest = step_of_checkpoint or (lambda: -1)
    restarts = Restarts(max_restarts, newest())
    began = time.monotonic()
    requests = StopRequests()
    # Listens between two starts as well; a start listens for itself.
    with requests.listening():
        while True:
            stop_marker.unlink(missing_ok=True)
            if attempts is not None:
                attempts.begin()
            result = start()
            signals = (*result.signals, *requests.received)
            decision = restarts.decide(result.exit_code, newest(), asked_to_stop=bool(signals))
            if attempts is not None:
                attempts.end(
                    result.exit_code, asked_to_stop=bool(signals), restart=decision.restart
                )
            if decision.say:
                warn(decision.say)
            if not decision.restart:
                break
            requests.wait(decision.wait_seconds)
            ready = wait_until_ready is None or requests.received or wait_until_ready(requests)
            if requests.received or not ready:
                signals = tuple(requests.received)
                if attempts is not None:
                    attempts.give_up(result.exit_code, asked_to_stop=bool(signals))
                break
    return RunResult(
        exit_code=result.exit_code,
        stopped=result.exit_code == EXIT_RESUMABLE and stop_marker.exists(),
        signals=signals,
        seconds=time.monotonic() - began,
        restarts=restarts.total,
    )
