"""The metrics of GLUE, from their definitions.

Where a definition divides by zero (all predictions are one class, or one number), the result is 0:
no agreement was shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer[Any]]
Numbers = NDArray[np.floating[Any]]


def accuracy(predicted: Labels, true: Labels) -> float:
    """Share of labels [N] that agree."""
    return float(np.mean(predicted == true))


def f1(predicted: Labels, true: Labels) -> float:
    """Harmonic mean of precision and recall of label 1, of labels [N] that are 0 or 1."""
    hits = int(np.sum((predicted == 1) & (true == 1)))
    claims_and_facts = int(np.sum(predicted == 1) + np.sum(true == 1))
    return 2 * hits / claims_and_facts if claims_and_facts else 0.0


def matthews(predicted: Labels, true: Labels) -> float:
    """Matthews' correlation of labels [N]; for more than two classes Gorodkin's R_K.

    The correlation of the indicator matrices of both: Gorodkin, "Comparing two K-category
    assignments by a K-category correlation coefficient" (2004).
    """
    classes = np.union1d(predicted, true)
    one, other = (labels[:, None] == classes for labels in (predicted, true))
    return _correlation(one.astype(np.float64), other.astype(np.float64))


def pearson(predicted: Numbers, true: Numbers) -> float:
    """Pearson's correlation of numbers [N]."""
    return _correlation(predicted.astype(np.float64)[:, None], true.astype(np.float64)[:, None])


def spearman(predicted: Numbers, true: Numbers) -> float:
    """Spearman's correlation of numbers [N]: Pearson's of their ranks, ties sharing the mean."""
    return pearson(_ranks(predicted), _ranks(true))


def _correlation(one: Numbers, other: Numbers) -> float:
    """Trace of the covariance of two matrices [N, K] over the root of the traces of their own."""
    one, other = _centred(one), _centred(other)
    spread = math.sqrt(float(np.sum(one * one)) * float(np.sum(other * other)))
    if spread == 0:
        return 0.0
    return min(1.0, max(-1.0, float(np.sum(one * other)) / spread))


def _centred(matrix: Numbers) -> Numbers:
    """Subtract the mean of each column of [N, K], and scale all so that the squares are floats."""
    matrix = matrix - matrix[0]  # what is constant becomes exactly 0, which its mean need not
    largest = np.abs(matrix).max()
    matrix = matrix / largest if largest > 0 else matrix
    centred: Numbers = matrix - matrix.mean(axis=0)
    return centred


def _ranks(values: Numbers) -> Numbers:
    """Return ranks [N] from 0; equal values get the mean of the ranks they take up."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts + 1) / 2
    ranks: Numbers = mean_rank[places]
    return ranks


OF_LABELS: Final[dict[str, Callable[[Labels, Labels], float]]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
}
"""Metrics of predicted classes."""

OF_NUMBERS: Final[dict[str, Callable[[Numbers, Numbers], float]]] = {
    "pearson": pearson,
    "spearman": spearman,
}
"""Metrics of predicted numbers."""
