"""How sure a difference of held-out losses is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_RESAMPLES = 10_000
_CONFIDENCE = 0.95
# Quantiles of Student's distribution at 0.975, by degrees of freedom; the last for all beyond.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


class Estimate(NamedTuple):
    """A number with its 95 % interval; without one where nothing can be said."""

    value: float
    low: float | None
    high: float | None


def paired_interval(
    first: npt.NDArray[np.float64],
    second: npt.NDArray[np.float64],
    tokens: npt.NDArray[np.int64],
    documents: npt.NDArray[np.int64],
) -> Estimate:
    """Difference of two losses a token on the same windows, by drawing documents anew.

    Windows of one document resemble each other, so whole documents are drawn, with replacement.

    Args:
        first: Nats of each window, [windows].
        second: Nats of the same windows under the other network.
        tokens: Targets of each window.
        documents: The document of each window.
    """
    _, places = np.unique(documents, return_inverse=True)
    nats = np.bincount(places, weights=first - second)
    targets = np.bincount(places, weights=tokens)
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(nats), size=(_RESAMPLES, len(nats)))
    values = nats[drawn].sum(axis=1) / targets[drawn].sum(axis=1)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return Estimate(float(nats.sum() / targets.sum()), float(low), float(high))


def mean_interval(values: Sequence[float]) -> Estimate:
    """Mean of independent runs, with Student's interval; a single run has none."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean, None, None)
    quantile = _STUDENT[min(len(values) - 1, len(_STUDENT)) - 1]
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)
