"""Accuracy of several seeds on the same test rows, with intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.downstream.arms import Arm
from finetune.intervals import bootstrap_interval, paired_difference

Correct = NDArray[np.float64]
"""1 where a seed is right about a test row, else 0; [S, N]."""


def correct_rows(arm: Arm) -> Correct:
    """Return what all seeds of a trained arm got right."""
    return np.array(
        [
            [row["prediction"] == row["label"] for row in arm.predictions(seed["seed"])]
            for seed in arm.results["seeds"]
        ],
        dtype=np.float64,
    )


def accuracy_row(correct: Correct, other: Correct | None, other_name: str) -> dict[str, Any]:
    """Return cells: accuracy, seeds, and the difference from another model on the same rows."""
    by_seed = correct.mean(axis=1)
    share = correct.mean(axis=0)
    cells: dict[str, Any] = {
        "accuracy [95 %]": with_interval(share.mean(), bootstrap_interval(share)),
        "by seed": " ".join(f"{value:.3f}" for value in by_seed),
        "sd of seeds": f"{by_seed.std(ddof=1):.3f}" if len(by_seed) > 1 else None,
        f"minus {other_name} [95 %]": None,
    }
    if other is not None:
        mean, lower, upper = paired_difference(share, other.mean(axis=0))
        cells[f"minus {other_name} [95 %]"] = with_interval(mean, (lower, upper), "+")
    return cells


def with_interval(
    mean: float, interval: tuple[float, float], sign: str = "", digits: int = 3
) -> str:
    """A number with the ends of its interval."""
    form = f"{sign}.{digits}f"
    return f"{mean:{form}} [{interval[0]:{form}}, {interval[1]:{form}}]"
