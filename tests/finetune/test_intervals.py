"""Intervals: they cover what they claim to, and depend on nothing but the values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.intervals import bootstrap_interval, bootstrap_ratio_interval, paired_difference

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30).map(
    lambda values: np.array(values, dtype=np.float64)
)


@settings(max_examples=40, deadline=None)
@given(VALUES, st.floats(0.1, 10), st.floats(-100, 100))
def test_an_interval_lies_within_the_values_and_moves_with_them(
    values: np.ndarray, scale: float, shift: float
) -> None:
    lower, upper = bootstrap_interval(values, resamples=200)
    slack = 1e-9 * (1 + np.abs(values).max())
    assert values.min() - slack <= lower <= upper <= values.max() + slack
    moved = bootstrap_interval(scale * values + shift, resamples=200)
    assert moved == pytest.approx((scale * lower + shift, scale * upper + shift), abs=1e-7)
    # A mean per unit is the mean where each item holds one unit, and the same for k units each.
    assert bootstrap_ratio_interval(4 * values, np.full(len(values), 4.0), resamples=200) == (
        pytest.approx((lower, upper), abs=1e-9)
    )


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    draws = generator.gamma(2.0, size=(400, 60))  # mean 2, and not symmetric
    hits = 0
    for draw in draws:
        lower, upper = bootstrap_interval(draw, level=0.9, resamples=400)
        hits += lower <= 2.0 <= upper
    # 400 trials of 0.9 scatter by 0.015; the percentile interval is known to be a little short.
    assert 0.84 < hits / 400 < 0.94


def test_many_items_are_drawn_in_blocks_without_a_change() -> None:
    values = np.random.default_rng(0).normal(size=9000)
    lower, upper = bootstrap_interval(values, resamples=1000)  # more than one block
    error = values.std() / np.sqrt(len(values))
    assert upper - lower == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_pairs_share_what_makes_an_item_hard() -> None:
    generator = np.random.default_rng(1)
    hardness = generator.normal(size=50)
    one, other = hardness + 0.1, hardness + generator.normal(scale=0.01, size=50)
    mean, lower, upper = paired_difference(one, other)
    assert 0.09 < lower < mean < upper < 0.11
    assert mean == pytest.approx(float(np.mean(one - other)))
    back, low, high = paired_difference(other, one)
    assert (back, low, high) == pytest.approx((-mean, -upper, -lower), abs=2e-4)
    apart = bootstrap_interval(one)
    assert apart[1] - apart[0] > 20 * (upper - lower), "alone, the items' own spread hides it"


def test_what_makes_no_sense_is_refused() -> None:
    ones = np.ones(3)
    for call, complaint in (
        (lambda: bootstrap_interval(np.ones(0)), "at least one value"),
        (lambda: bootstrap_interval(np.ones((2, 2))), "expected a vector"),
        (lambda: bootstrap_interval(np.array([1.0, np.nan])), "must be finite"),
        (lambda: bootstrap_interval(ones, level=1.0), "level must be"),
        (lambda: bootstrap_interval(ones, resamples=0), "resamples must be"),
        (lambda: bootstrap_ratio_interval(ones, np.ones(2)), "do not pair"),
        (lambda: bootstrap_ratio_interval(ones, np.array([1.0, 0, 1])), "above 0"),
        (lambda: paired_difference(ones, np.ones(2)), "do not pair"),
    ):
        with pytest.raises(ValueError, match=complaint):
            call()
