"""Mixing: exact proportions everywhere, each source in its own order, nothing drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.reading.mixture import Mixture, Stage, temperature_weights

NAMES = ("a", "b", "c", "d", "e")
WEIGHTS = st.lists(
    st.sampled_from([0.0, 0.001, 0.1, 1.0, 1.5, 3.0, 100.0]), min_size=5, max_size=5
).filter(lambda weights: sum(weights) > 0)


def stage(start: int, weights: list[float]) -> Stage:
    return Stage(start, dict(zip(NAMES, weights, strict=True)))


@settings(deadline=None)
@given(weights=WEIGHTS, start=st.integers(0, 10**15), length=st.integers(1, 3000))
def test_proportions_hold_over_any_span(weights: list[float], start: int, length: int) -> None:
    mixture = Mixture(NAMES, [stage(0, weights)])
    sources, _ = mixture.locate(np.arange(start, start + length))
    counts = np.bincount(sources, minlength=5)
    expected = np.array(weights) / sum(weights) * length
    # Two samples at either edge, and what whole shares of 2**20 cannot express.
    assert np.abs(counts - expected).max() < 4 + 1e-5 * length
    assert not counts[np.array(weights) == 0].any()


@settings(deadline=None)
@given(
    stages=st.lists(st.tuples(st.integers(1, 400), WEIGHTS), min_size=1, max_size=4),
    start=st.integers(0, 1500),
)
def test_each_source_comes_in_its_own_order_through_all_stages(
    stages: list[tuple[int, list[float]]], start: int
) -> None:
    begin, parts = 0, []
    for length, weights in stages:
        parts.append(stage(begin, weights))
        begin += length
    mixture = Mixture(NAMES, parts)
    sources, numbers = mixture.locate(np.arange(2000))
    for source in range(5):
        mine = numbers[sources == source]
        assert np.array_equal(mine, np.arange(len(mine)))
    counts = np.bincount(sources[:start], minlength=5)
    assert mixture.counts(start) == dict(zip(NAMES, counts.tolist(), strict=True))
    again, again_numbers = mixture.locate(np.arange(start, 2000))
    assert np.array_equal(again, sources[start:])
    assert np.array_equal(again_numbers, numbers[start:])


def test_a_later_stage_changes_nothing_before_it() -> None:
    first = stage(0, [3, 1, 0, 0, 0])
    short = Mixture(NAMES, [first])
    long = Mixture((*NAMES, "new"), [first, Stage(500, {"new": 1.0, "a": 1.0})])
    assert np.array_equal(short.locate(np.arange(500)), long.locate(np.arange(500)))
    sources, numbers = long.locate(np.arange(500, 600))
    assert set(sources.tolist()) == {0, 5}
    assert numbers[sources == 5].tolist() == list(range(50))
    assert numbers[sources == 0][0] == 375


def test_equal_weights_alternate() -> None:
    sources, _ = Mixture(("a", "b"), [Stage(0, {"a": 2, "b": 2})]).locate(np.arange(10))
    assert np.array_equal(sources[::2], np.full(5, sources[0]))
    assert np.array_equal(sources[1::2], np.full(5, 1 - sources[0]))


def test_the_mixture_never_changes() -> None:
    mixture = Mixture(NAMES, [stage(0, [5, 3, 0, 1, 0.5]), stage(10, [0, 0, 1, 1, 0])])
    sources, numbers = mixture.locate([*range(14), 10**12])
    assert (sources.tolist(), numbers.tolist()) == GOLDEN_MIXTURE


# Frozen: a change here is another mixture.
GOLDEN_MIXTURE = (
    [0, 1, 0, 3, 0, 1, 0, 1, 0, 4, 2, 3, 2, 3, 2],
    [0, 0, 1, 0, 2, 1, 3, 2, 4, 0, 0, 1, 1, 2, 499999999995],
)


def test_temperature_flattens_sizes() -> None:
    tokens = {"large": 10_000, "small": 100}
    proportional = temperature_weights(tokens, 1)
    assert proportional["large"] / proportional["small"] == pytest.approx(100)
    flat = temperature_weights(tokens, 2)
    assert flat["large"] / flat["small"] == pytest.approx(10)
    with pytest.raises(DataError, match="temperature must be at least 1"):
        temperature_weights(tokens, 0.5)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "the first must begin at 0"),
        ([Stage(1, {"a": 1})], "the first must begin at 0"),
        ([Stage(0, {"a": 1}), Stage(0, {"b": 1})], "each later than the one before"),
        ([Stage(0, {"z": 1})], "source 'z', which is none of a, b, c, d, e"),
        ([Stage(0, {"a": -1})], "must be 0 or more"),
        ([Stage(0, {"a": float("nan")})], "must be 0 or more"),
        ([Stage(0, {"a": 0})], "all weights of a stage"),
    ],
)
def test_impossible_mixtures_are_errors(stages: list[Stage], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Mixture(NAMES, stages)
