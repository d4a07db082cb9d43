"""The machine that is measured: what it is, how long something takes on it, what it could do."""

from __future__ import annotations

import gc
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.nn import functional

from benchmarks.common.machine import cpu_name


def machine_facts() -> dict[str, Any]:
    """Say where the numbers are from."""
    return {
        "CPU": cpu_name(),
        "cores": psutil.cpu_count(logical=True),
        "threads": torch.get_num_threads(),
        "bf16 products": _bfloat16_products(),
        "memory GiB": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
    }


def _bfloat16_products() -> str:
    flags = Path("/proc/cpuinfo")
    text = flags.read_text(encoding="utf-8", errors="replace") if flags.is_file() else ""
    return next((name for name in ("amx_bf16", "avx512_bf16") if name in text), "emulated")


@dataclass(frozen=True)
class Duration:
    """How long something took."""

    cpu: float
    """Seconds of CPU time over all threads, divided by their number."""
    wall: float
    """Seconds on the clock."""


def measure(function: Callable[[], object]) -> Duration:
    """Run a function once."""
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Duration(cpu / torch.get_num_threads(), wall)


def alternate(
    functions: Mapping[str, Callable[[], object]],
    repeats: int,
    between: Callable[[], object] | None = None,
) -> dict[str, list[Duration]]:
    """Measure functions in turn, A B C A B C …, after each ran once unmeasured.

    Args:
        functions: By name.
        repeats: Rounds.
        between: Runs before each round.
    """
    for function in functions.values():
        function()
    durations: dict[str, list[Duration]] = {name: [] for name in functions}
    for _ in range(repeats):
        gc.collect()
        if between is not None:
            between()
        for name, function in functions.items():
            durations[name].append(measure(function))
    return durations


def median(durations: list[Duration]) -> Duration:
    """Return the median of both times."""
    return Duration(
        statistics.median(x.cpu for x in durations), statistics.median(x.wall for x in durations)
    )


class GemmPeak:
    """The rate of the feed-forward products alone, taken again and again during a run.

    The clock of a machine wanders, so the peak of a run is the median over its rounds of the best
    of several products in each.
    """

    def __init__(self, width: int, inner: int, tokens: int, dtype: torch.dtype) -> None:
        self.narrow = torch.randn(tokens, width).to(dtype)
        self.wide = torch.randn(tokens, inner).to(dtype)
        self.expand = torch.randn(inner, width).to(dtype)
        self.contract = torch.randn(width, inner).to(dtype)
        self.flops = 4 * tokens * width * inner
        self.rounds: list[Duration] = []

    def _products(self) -> None:
        functional.linear(self.narrow, self.expand)
        functional.linear(self.wide, self.contract)

    def measure(self) -> None:
        """Take the best of five."""
        self._products()
        taken = [measure(self._products) for _ in range(5)]
        self.rounds.append(Duration(min(x.cpu for x in taken), min(x.wall for x in taken)))

    def flops_per_second(self) -> Duration:
        """Return the rates by CPU time and by the clock."""
        typical = median(self.rounds)
        return Duration(self.flops / typical.cpu, self.flops / typical.wall)
