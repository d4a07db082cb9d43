"""Starting real worker processes from a test, and reading what they did."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from python_processes import ForkedProcess, FreshProcess

RUN_WORKER = str(Path(__file__).with_name("run_worker.py"))


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Ranks:
    """One process a rank, started as a launcher would: ``python ARGUMENTS`` with its variables."""

    def __init__(
        self,
        arguments: list[str],
        *,
        processes: int,
        fresh: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Starts them.

        Args:
            arguments: A script, or ``-m`` and a module, with its arguments.
            processes: Number of ranks.
            fresh: Start new interpreters (seconds each) instead of forking a warm one.
            environment: Further variables of all ranks.
        """
        start = FreshProcess if fresh else ForkedProcess
        variables = {
            "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        }
        self.ranks = [
            start(
                arguments,
                os.environ | variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(processes)
        ]

    @property
    def output(self) -> list[str]:
        """What each rank has written on standard output and error so far."""
        return [rank.output for rank in self.ranks]

    def wait(self, timeout_seconds: float = 240) -> list[int]:
        """Exit codes, negative for signals."""
        deadline = time.monotonic() + timeout_seconds
        try:
            return [rank.wait(max(1.0, deadline - time.monotonic())) for rank in self.ranks]
        finally:
            self.kill()

    def signal(self, number: signal.Signals, *ranks: int) -> None:
        """Send a signal to some ranks, or to all."""
        for rank in ranks or range(len(self.ranks)):
            self.ranks[rank].send_signal(number)

    def kill(self) -> None:
        """End whatever still runs."""
        for rank in self.ranks:
            if rank.poll() is None:
                rank.kill()
                rank.wait()


class Workers(Ranks):
    """The ranks of a run of ``pretrain.worker``."""

    def __init__(self, config: Path, *overrides: str, processes: int, fresh: bool = False) -> None:
        super().__init__([RUN_WORKER, str(config), *overrides], processes=processes, fresh=fresh)

    def wait_for_step(self, metrics: Path, step: int) -> None:
        """Return as soon as the step stands in the metrics."""
        self.wait_for(lambda: any(line["step"] >= step for line in read_lines(metrics)))

    def wait_for(self, condition: Callable[[], bool], timeout_seconds: float = 120) -> None:
        """Return as soon as something holds; meanwhile all ranks must live."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            if condition():
                return
            if any(rank.poll() is not None for rank in self.ranks):
                self.kill()
                raise AssertionError("\n".join(self.output))
            time.sleep(0.02)
        self.kill()
        raise AssertionError(f"waited {timeout_seconds} s in vain")


def train(config: Path, *overrides: str, processes: int, fresh: bool = False) -> Workers:
    """Run to the end, which must be a good one."""
    workers = Workers(config, *overrides, processes=processes, fresh=fresh)
    codes = workers.wait()
    assert set(codes) == {0}, "\n".join(workers.output)
    return workers


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Complete lines of a metrics file."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def losses(run: Path) -> list[tuple[int, float]]:
    """The loss curve, to the last bit."""
    lines = read_lines(run / "metrics.jsonl")
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]
