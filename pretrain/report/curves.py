"""Curves out of ``metrics.jsonl``: sorted lines, series of numbers, thinned and smoothed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

_MOST_POINTS = 2000
_LARGEST_DRAWN = 1e30
"""Larger ones overflow while axes are laid out."""


@dataclass(frozen=True)
class Curves:
    """The lines of ``metrics.jsonl``, sorted by what they say.

    Attributes:
        train: Lines of training steps.
        evaluations: Lines of held-out evaluations.
        resumed_at: Steps after which the run was resumed.
    """

    train: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    resumed_at: list[int]

    @classmethod
    def from_metrics(cls, lines: Iterable[dict[str, Any]]) -> Curves:
        """Sorts lines; those of another kind, or without a step, are passed over."""
        curves = cls([], [], [])
        for line in lines:
            step = line.get("step")
            if not is_step(step):
                continue
            if line.get("event") == "resume":
                curves.resumed_at.append(step)
            if "eval/heldout/loss" in line:
                curves.evaluations.append(line)
            if isinstance(line.get("loss"), (int, float)):
                curves.train.append(line)
        return curves


def is_step(value: Any) -> TypeGuard[int]:
    """Whether a value can be the number of a step; floats hold these exactly."""
    return type(value) is int and 0 <= value < 2**53


def finite(value: Any) -> float | None:
    """A number as a float; None for what is no number, not finite, or too large to be drawn."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if -_LARGEST_DRAWN < value < _LARGEST_DRAWN else None


def series(
    lines: Sequence[dict[str, Any]], key: str, along: str = "step"
) -> tuple[np.ndarray, np.ndarray]:
    """Takes one quantity out of lines, thinned for drawing.

    Args:
        lines: Lines of metrics.
        key: The quantity; lines without it, or with a value that is no finite number, are left
            out.
        along: What it is drawn over, treated alike.

    Returns:
        Places and values, float64[n], n at most 2000: means over runs of neighbours.
    """
    pairs = [(finite(line.get(along)), finite(line.get(key))) for line in lines]
    known = [pair for pair in pairs if None not in pair]
    points = np.array(known, dtype=np.float64).reshape(-1, 2)
    if len(points) > _MOST_POINTS:
        edges = np.linspace(0, len(points), _MOST_POINTS + 1).astype(int)[:-1]
        widths = np.diff(np.append(edges, len(points)))[:, None]
        points = np.add.reduceat(points, edges) / widths
    return points[:, 0], points[:, 1]


def smoothed(values: np.ndarray) -> np.ndarray:
    """Averages each value with its neighbours, about a fiftieth of the curve to either side.

    Args:
        values: float64[n].

    Returns:
        float64[n]; the window shrinks at both ends, so that the ends are not bent.
    """
    reach = len(values) // 50
    sums = np.concatenate([[0.0], np.cumsum(values)])
    positions = np.arange(len(values))
    reaches = np.minimum(reach, np.minimum(positions, positions[::-1]))
    means: np.ndarray = (sums[positions + reaches + 1] - sums[positions - reaches]) / (
        2 * reaches + 1
    )
    return means
