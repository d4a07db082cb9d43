"""Reading a run's metrics while it goes on, and comparing two runs bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TAIL_BYTES = 1 << 14
# What depends on the clock or the machine, not on the arithmetic.
_NOT_COMPARED = (
    *("tokens_per_second", "model_flops_utilisation", "step_seconds", "data_wait_seconds"),
    *("time/", "memory/", "communication/"),
)


def last_step(metrics: Path) -> int:
    """Reads the newest training step in a ``metrics.jsonl``, from its end only.

    Returns:
        The step, or 0 where there is none yet. A line still being written does not count.
    """
    try:
        with metrics.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - _TAIL_BYTES))
            lines = stream.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:  # the first line of the tail is cut
            continue
        if "loss" in record:
            return int(record["step"])
    return 0


@dataclass(frozen=True)
class CurveComparison:
    """How two runs compare.

    Attributes:
        values: Numbers compared.
        steps: Training steps compared.
        differences: One line for each number that differs or is missing on one side.
    """

    values: int
    steps: int
    differences: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether something was compared and nothing differed."""
        return self.steps > 0 and not self.differences


def compare_curves(left: Path, right: Path) -> CurveComparison:
    """Compares two ``metrics.jsonl`` to the last bit: losses, norms, rates, evaluations.

    JSON carries a float64 exactly, so equal numbers are equal bits.

    Args:
        left: Metrics of one run.
        right: Metrics of the other.
    """
    one, other = _numbers(left), _numbers(right)
    differences = [
        f"step {key[0]}: {key[1]} is {one.get(key)!r} in one run, {other.get(key)!r} in the other"
        for key in sorted(one.keys() | other.keys())
        if one.get(key) != other.get(key)
    ]
    shared = one.keys() & other.keys()
    steps = sum(name == "loss" for _, name in shared)
    return CurveComparison(len(shared), steps, tuple(differences))


def _numbers(metrics: Path) -> Mapping[tuple[int, str], Any]:
    """Takes every comparable number by its step and name."""
    from pretrain.telemetry.metrics import read_metrics

    return {
        (record["step"], name): value
        for record in read_metrics(metrics)
        if "event" not in record
        for name, value in record.items()
        if name != "step" and not name.startswith(_NOT_COMPARED)
    }
