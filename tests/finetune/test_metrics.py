"""GLUE's metrics against other people's code and their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy import stats

from finetune.metrics import accuracy, f1, matthews, pearson, spearman

Labels = NDArray[np.int64]


@st.composite
def two_labellings(draw: st.DrawFn, classes: int = 2) -> tuple[Labels, Labels]:
    rows = draw(st.integers(1, 40))
    some = arrays.arrays(np.int64, rows, elements=st.integers(0, classes - 1))
    return draw(some), draw(some)


@st.composite
def two_lists(draw: st.DrawFn) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows = draw(st.integers(2, 40))
    # Whole numbers of a small range: ties, and constants, come up often.
    some = arrays.arrays(np.float64, rows, elements=st.integers(-6, 6).map(float))
    return draw(some), draw(some)


def confusion(predicted: Labels, true: Labels) -> tuple[int, int, int, int]:
    pairs = list(zip(predicted.tolist(), true.tolist(), strict=True))
    return pairs.count((1, 1)), pairs.count((1, 0)), pairs.count((0, 1)), pairs.count((0, 0))


@given(two_labellings())
def test_two_classes_are_counted_as_defined(labels: tuple[Labels, Labels]) -> None:
    hits, false_alarms, misses, rejections = confusion(*labels)
    total = hits + false_alarms + misses + rejections
    assert accuracy(*labels) == pytest.approx((hits + rejections) / total)
    if hits:
        precision, recall = hits / (hits + false_alarms), hits / (hits + misses)
        assert f1(*labels) == pytest.approx(2 * precision * recall / (precision + recall))
    else:
        assert f1(*labels) == 0
    margins = (hits + false_alarms) * (hits + misses)
    margins *= (rejections + false_alarms) * (rejections + misses)
    expected = 0.0
    if margins:
        expected = (hits * rejections - false_alarms * misses) / math.sqrt(margins)
    assert matthews(*labels) == pytest.approx(expected, abs=1e-12)


@given(two_labellings(classes=4), st.permutations(range(4)))
def test_matthews_of_many_classes(labels: tuple[Labels, Labels], names: list[int]) -> None:
    """R_K by its formula of counts, whatever the classes are called."""
    predicted, true = labels
    rows, right = len(true), int(np.sum(predicted == true))
    p, t = (np.bincount(each, minlength=4).astype(float) for each in labels)
    spread = math.sqrt((rows**2 - float(p @ p)) * (rows**2 - float(t @ t)))
    expected = (right * rows - float(p @ t)) / spread if spread else 0.0
    assert matthews(predicted, true) == pytest.approx(expected, abs=1e-12)
    renamed = np.array(names)
    assert matthews(renamed[predicted], renamed[true]) == pytest.approx(expected, abs=1e-12)


@given(two_lists())
def test_correlations_are_scipys(lists: tuple[NDArray[np.float64], NDArray[np.float64]]) -> None:
    one, other = lists
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        assert pearson(one, other) == spearman(one, other) == 0
        return
    assert pearson(one, other) == pytest.approx(stats.pearsonr(one, other)[0], abs=1e-9)
    assert spearman(one, other) == pytest.approx(stats.spearmanr(one, other)[0], abs=1e-9)


@given(two_lists(), st.sampled_from([1e-200, 0.1, 3.0, 1e200]))
def test_correlations_know_no_unit(
    lists: tuple[NDArray[np.float64], NDArray[np.float64]], unit: float
) -> None:
    one, other = lists
    assert pearson(one * unit, other) == pytest.approx(pearson(one, other), abs=1e-9)
    assert pearson(-one * unit, other) == pytest.approx(-pearson(one, other), abs=1e-9)
    assert spearman(one**3, other) == pytest.approx(spearman(one, other), abs=1e-12)
    assert -1 <= pearson(one, other) <= 1


def test_a_constant_agrees_with_nothing_however_it_is_rounded() -> None:
    assert pearson(np.full(10, 0.1), np.arange(10.0)) == 0
    assert pearson(np.full(3, 0.1, dtype=np.float32), np.arange(3.0)) == 0
