"""Starting real worker processes from a test, and reading what they did."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

WORKER = """
import sys
from pathlib import Path
from pretrain.config import RunConfig
from pretrain.worker import main
try:
    sys.exit(main(RunConfig.load(Path(sys.argv[1]), sys.argv[2:])))
except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)
"""


class Workers:
    """One process a rank, started as a launcher would."""

    def __init__(self, config: Path, *overrides: str, processes: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.ranks = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, str(config), *overrides],
                env=os.environ
                | {
                    "RANK": str(rank),
                    "WORLD_SIZE": str(processes),
                    "LOCAL_RANK": str(rank),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    "OMP_NUM_THREADS": "1",
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(processes)
        ]

    def wait(self, timeout_seconds: float = 240) -> list[int]:
        """Exit codes; the output is kept in ``output``."""
        deadline = time.monotonic() + timeout_seconds
        try:
            self.output = [
                rank.communicate(timeout=max(1.0, deadline - time.monotonic()))[0]
                for rank in self.ranks
            ]
        finally:
            self.kill()
        return [rank.returncode for rank in self.ranks]

    def wait_for_step(self, metrics: Path, step: int, timeout_seconds: float = 120) -> None:
        """Return as soon as the step stands in the metrics."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            if any(line["step"] >= step for line in read_lines(metrics)):
                return
            if any(rank.poll() is not None for rank in self.ranks):
                self.kill()
                raise AssertionError("\n".join(rank.stdout.read() for rank in self.ranks))
            time.sleep(0.02)
        self.kill()
        raise AssertionError(f"step {step} not reached in {timeout_seconds} s")

    def signal(self, number: signal.Signals, *ranks: int) -> None:
        """Send a signal to some ranks, or to all."""
        for rank in ranks or range(len(self.ranks)):
            self.ranks[rank].send_signal(number)

    def kill(self) -> None:
        """End whatever still runs."""
        for rank in self.ranks:
            if rank.poll() is None:
                rank.kill()


def train(config: Path, *overrides: str, processes: int) -> Workers:
    """Run to the end, which must be a good one."""
    workers = Workers(config, *overrides, processes=processes)
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
