"""Confidence intervals of means over test items, by the bootstrap.

A test set is one draw of many possible ones. The bootstrap draws the items again with
replacement, takes the mean of each draw, and reads the interval off the quantiles of these means
(the percentile interval). Two models measured on the same items are compared **paired**: both
take the same draw of items, so what makes an item hard for both cancels out.

All draws come from a fixed seed: the same values give the same interval everywhere.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_BLOCK_VALUES = 4_000_000
"""How many drawn values are held at once; more resamples than that are taken block by block."""


def bootstrap_interval(
    values: NDArray[np.float64],
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of the mean of some values.

    Args:
        values: One value per test item, shape ``(items,)``.
        level: The interval's coverage, above 0 and below 1.
        resamples: How many times the items are drawn again.
        seed: Seed of the draws.

    Returns:
        Lower and upper end; both are the value itself for a single item.

    Raises:
        ValueError: If there are no values, they are not a vector or not finite, or ``level`` or
            ``resamples`` is out of range.
    """
    return bootstrap_ratio_interval(
        values, np.ones(len(values)), level=level, resamples=resamples, seed=seed
    )


def bootstrap_ratio_interval(
    numerators: NDArray[np.float64],
    denominators: NDArray[np.float64],
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of ``sum(numerators) / sum(denominators)`` over drawn items.

    This is the interval of a mean per unit where items hold different numbers of units, such as
    the negative log-likelihood per token of documents of different lengths.

    Args:
        numerators: One value per item, shape ``(items,)``.
        denominators: One value above 0 per item, shape ``(items,)``.
        level: The interval's coverage, above 0 and below 1.
        resamples: How many times the items are drawn again.
        seed: Seed of the draws.

    Returns:
        Lower and upper end.

    Raises:
        ValueError: As for ``bootstrap_interval``, or if a denominator is not above 0.
    """
    above = _checked_vector(numerators)
    below = _checked_vector(denominators)
    if len(above) != len(below):
        raise ValueError(f"{len(above)} numerators do not pair with {len(below)} denominators")
    if not bool((below > 0).all()):
        raise ValueError("denominators must be above 0")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must be above 0 and below 1, got {level}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    generator = np.random.default_rng(seed)
    block_rows = max(1, _BLOCK_VALUES // len(above))
    ratios = np.empty(resamples, dtype=np.float64)
    for start in range(0, resamples, block_rows):
        rows = min(block_rows, resamples - start)
        drawn = generator.integers(0, len(above), size=(rows, len(above)))
        ratios[start : start + rows] = above[drawn].sum(axis=1) / below[drawn].sum(axis=1)
    tail = (1.0 - level) / 2.0
    lower, upper = np.quantile(ratios, (tail, 1.0 - tail))
    return float(lower), float(upper)


def paired_difference(
    one: NDArray[np.float64],
    other: NDArray[np.float64],
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean of ``one - other`` over the same items, with its interval.

    Args:
        one: One value per item, shape ``(items,)``.
        other: The other's value of the same items in the same order, shape ``(items,)``.
        level: The interval's coverage, above 0 and below 1.
        resamples: How many times the items are drawn again; a draw takes both values of an item.
        seed: Seed of the draws.

    Returns:
        Mean difference, lower and upper end. An interval without 0 says that the two differ.

    Raises:
        ValueError: As for ``bootstrap_interval``, or if the two differ in length.
    """
    first, second = _checked_vector(one), _checked_vector(other)
    if len(first) != len(second):
        raise ValueError(f"{len(first)} values do not pair with {len(second)}")
    difference = first - second
    lower, upper = bootstrap_interval(difference, level=level, resamples=resamples, seed=seed)
    return float(difference.mean()), lower, upper


def _checked_vector(values: ArrayLike) -> NDArray[np.float64]:
    """``values`` as a vector of float64 that holds something and only finite numbers."""
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or len(vector) == 0:
        raise ValueError(f"expected a vector of at least one value, got shape {vector.shape}")
    if not bool(np.isfinite(vector).all()):
        raise ValueError("all values must be finite")
    return vector
