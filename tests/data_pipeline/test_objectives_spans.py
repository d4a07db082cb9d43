"""Span corruption: T5's exact lengths, spans uniform over all ways to cut, masks that never change.

What holds for every objective, such as that no token is lost, is in `test_objectives.py`.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from objective_rows import NUM_PIECES, VOCAB, merged, random_keys, random_windows, rows_of

from data_pipeline.errors import DataError
from data_pipeline.objectives.batch import SpecialTokens, Windows
from data_pipeline.objectives.draws import MAXIMUM_TOKENS, below, derive, random_lengths
from data_pipeline.objectives.span_corruption import SpanCorruption


def published_lengths(raw: int, density: float, mean: float) -> tuple[int, int]:
    """Input and target length for a window, as the paper's code states them."""
    noise = round(raw * density)
    spans = round(noise / mean)
    return raw - noise + spans + 1, noise + spans + 1


@pytest.mark.parametrize(
    ("input_length", "raw", "target", "spans"),
    [(512, 568, 114, 28), (4096, 4550, 910, 227), (1024, 1137, 229, 57), (16384, 18204, 3642, 910)],
)
def test_lengths_are_those_of_t5(input_length: int, raw: int, target: int, spans: int) -> None:
    objective = SpanCorruption(input_length)
    assert objective.window_tokens == raw
    assert objective.target_length_tokens == target
    assert objective.spans == spans
    # The longest window that fits, found the published way: one token more would not.
    assert published_lengths(raw, 0.15, 3.0) == (input_length, target)
    assert published_lengths(raw + 1, 0.15, 3.0)[0] > input_length


@settings(deadline=None, max_examples=200)
@given(
    input_length=st.integers(3, 600),
    density=st.floats(0.01, 0.9),
    mean=st.floats(1, 40),
    shorter=st.lists(st.integers(0, 60), max_size=4),
    seed=st.integers(0, 2**32),
)
def test_merging_inputs_and_labels_gives_the_window_back(
    input_length: int, density: float, mean: float, shorter: list[int], seed: int
) -> None:
    try:
        objective = SpanCorruption(input_length, density, mean)
    except DataError:
        # Which these are, `test_impossible_objectives_are_errors` looks at.
        return
    full = objective.window_tokens
    assume(full < 5000)
    assume(objective.spans <= VOCAB.sentinel_count)
    lengths = [full, *(max(full - number, 0) for number in shorter)]
    windows = random_windows(seed, lengths, full)
    batch = objective.make(windows, random_keys(seed, len(lengths)), VOCAB)
    assert batch.input_ids.shape[1] == input_length
    assert batch.labels.shape[1] == objective.target_length_tokens
    for row, (inputs, label) in enumerate(rows_of(batch)):
        assert inputs[-1] == label[-1] == VOCAB.eos_token_id
        window = windows.tokens[row, : lengths[row]].tolist()
        assert merged(inputs[:-1], label[:-1]) == window
        is_sentinel = [token >= NUM_PIECES for token in inputs]
        if lengths[row] > 1:
            touching = any(left and right for left, right in itertools.pairwise(is_sentinel))
            assert not is_sentinel[0], "a row begins with kept text"
            assert is_sentinel[-2], "and ends with a span"
            assert not touching, "kept text stands between spans"
            noise = min(max(round(lengths[row] * density), 1), lengths[row] - 1)
            assert len(label) == noise + sum(is_sentinel) + 1, "the density is the one asked for"
            if row == 0:
                assert sum(is_sentinel) == max(round(noise / mean), 1)


def test_a_sentinel_belongs_to_the_document_in_which_its_span_begins() -> None:
    objective = SpanCorruption(200)
    width = objective.window_tokens
    segments = np.repeat(np.arange(1, 41), 9)[:width].astype(np.uint16)
    # The id says where a token stands, so that the first of a span tells the document.
    positions = np.arange(width) + 3
    windows = Windows(
        np.tile(positions, (8, 1)).astype("<u2"), np.full(8, width), np.tile(segments, (8, 1))
    )
    vocab = SpecialTokens(5000, 1000, 1, 0)
    batch = objective.make(windows, random_keys(0, 8), vocab)
    assert batch.input_segment_ids is not None
    for inputs, labels, found in zip(
        batch.input_ids.tolist(), batch.labels.tolist(), batch.input_segment_ids, strict=True
    ):
        firsts = [labels[place + 1] for place, token in enumerate(labels) if token >= 4000]
        starts = iter(firsts)
        for token, number in zip(inputs[:-1], found.tolist(), strict=False):
            position = (next(starts) if token >= 4000 else token) - 3
            assert number == segments[position]
        assert found[-1] == segments[-1], "the end belongs to the last document"


@pytest.mark.parametrize(
    ("total", "parts"), [(3, 2), (5, 2), (6, 3), (8, 3), (9, 4), (11, 3), (13, 3), (20, 3)]
)
def test_every_way_to_cut_is_equally_likely(total: int, parts: int) -> None:
    """Chi-square over all compositions: the first cut places are drawn without replacement."""
    num_rows, ways = 60_000, math.comb(total - 1, parts - 1)
    keys = derive(np.arange(num_rows, dtype=np.uint64), 1)
    lengths = random_lengths(np.full(num_rows, total), np.full(num_rows, parts), keys)
    assert (lengths.sum(axis=1) == total).all()
    assert lengths.min() >= 1
    _, counts = np.unique(lengths, axis=0, return_counts=True)
    assert len(counts) == ways
    chi_square = float(((counts - num_rows / ways) ** 2 / (num_rows / ways)).sum())
    # Five standard deviations above what uniform draws give.
    assert chi_square < ways - 1 + 5 * math.sqrt(2 * (ways - 1))


@settings(deadline=None)
@given(
    cuts=st.lists(
        st.integers(1, MAXIMUM_TOKENS - 1).flatmap(
            lambda total: st.tuples(st.just(total), st.integers(1, min(total, 300)))
        ),
        max_size=8,
    ),
    seed=st.integers(0, 2**32),
)
def test_cuts_are_positive_and_do_not_depend_on_their_company(
    cuts: list[tuple[int, int]], seed: int
) -> None:
    totals = np.array([total for total, _ in cuts], dtype=np.int64)
    parts = np.array([number for _, number in cuts], dtype=np.int64)
    keys = random_keys(seed, len(cuts))
    lengths = random_lengths(totals, parts, keys)
    for row, (total, number) in enumerate(cuts):
        assert lengths[row, :number].min() >= 1
        assert lengths[row].sum() == total
        assert not lengths[row, number:].any()
        one = slice(row, row + 1)
        alone = random_lengths(totals[one], parts[one], keys[one])
        assert np.array_equal(alone[0], lengths[row, :number])


def test_spans_have_the_statistics_of_sampling_without_replacement() -> None:
    objective = SpanCorruption(512)
    num_rows, width = 4000, objective.window_tokens
    windows = Windows(np.full((num_rows, width), 7, "<u2"), np.full(num_rows, width))
    batch = objective.make(windows, random_keys(0, num_rows), VOCAB)
    starts = np.diff(np.flatnonzero((batch.labels[:, :-1] >= NUM_PIECES).ravel()))
    lengths = starts[np.arange(len(starts)) % 28 != 27] - 1
    # 85 tokens in 28 parts: a part is 1 with probability 27/84, and its variance is known.
    assert (lengths == 1).mean() == pytest.approx(27 / 84, abs=0.01)
    assert lengths.mean() == pytest.approx(85 / 28, abs=0.03)
    # Of a uniform composition of n into k: n (n - k) (k - 1) / (k² (k + 1)).
    assert lengths.var() == pytest.approx(85 * 57 * 27 / (28**2 * 29), rel=0.03)
    # Every place of the window is asked for about as often, but for the ends.
    corrupted = np.zeros(width)
    for row, label in zip(batch.input_ids[:1000], batch.labels[:1000], strict=True):
        position, spans = 0, [*np.flatnonzero(label >= NUM_PIECES).tolist(), len(label) - 1]
        number = 0
        for token in row[:-1].tolist():
            if token < NUM_PIECES:
                position += 1
                continue
            length = spans[number + 1] - spans[number] - 1
            corrupted[position : position + length] += 1
            position, number = position + length, number + 1
    middle = corrupted[60:-60].reshape(-1, 56).mean(axis=1) / 1000
    assert np.abs(middle - 0.15).max() < 0.02


def test_neighbouring_keys_give_unrelated_masks() -> None:
    objective = SpanCorruption(512)
    width = objective.window_tokens
    windows = Windows(np.full((200, width), 7, "<u2"), np.full(200, width))
    inputs = objective.make(windows, np.arange(200, dtype=np.uint64), VOCAB).input_ids
    assert len(np.unique(inputs, axis=0)) == 200
    places = (inputs >= NUM_PIECES).astype(float)
    # All rows begin with text and end with a span: what they share by construction does not count.
    places -= places.mean(axis=0)
    correlation = np.corrcoef(places[:-1].ravel(), places[1:].ravel())[0, 1]
    assert abs(correlation) < 0.02


def test_draws_below_a_bound_reach_all_of_it_evenly() -> None:
    draws = below(np.full(70_000, 7), derive(np.arange(70_000, dtype=np.uint64), 2))
    counts = np.bincount(draws, minlength=7)
    assert len(counts) == 7
    assert float(((counts - 10_000) ** 2 / 10_000).sum()) < 6 + 5 * math.sqrt(12)
    assert below(np.array([1, 2**31]), np.array([2**64 - 1] * 2, np.uint64)).tolist() == [
        *(0, 2**31 - 1)
    ]


def test_the_masks_never_change() -> None:
    objective = SpanCorruption(48)
    width = objective.window_tokens
    windows = Windows(np.tile(np.arange(3, 3 + width), (2, 1)).astype("<u2"), np.full(2, width))
    batch = objective.make(windows, np.array([5, 2**63 + 9], np.uint64), VOCAB)
    # Only what is asked for, by sentinels: it decides about the inputs too.
    assert batch.labels.tolist() == GOLDEN_LABELS


# Frozen: a change here is another objective, which needs new versions of its keys.
GOLDEN_LABELS = [
    [1199, 10, 11, 12, 13, 14, 1198, 25, 1197, 53, 54, 1],
    [1199, 26, 27, 28, 1198, 35, 1197, 51, 52, 53, 54, 1],
]


def test_too_few_sentinels_name_the_numbers_and_the_remedies() -> None:
    objective = SpanCorruption(4096)
    objective.check_vocabulary(SpecialTokens(5000, 227, 1, 0))
    with pytest.raises(DataError, match=r"has 226 sentinels, but .* 4096 .* need 227: train"):
        objective.check_vocabulary(SpecialTokens(5000, 226, 1, 0))
    with pytest.raises(DataError, match=r"at least 227 sentinels$"):
        objective.check_vocabulary(SpecialTokens(5000, 0, 1, 0))


@pytest.mark.parametrize("count", [1, 2, 28, 100, 128, 300, 900])
def test_the_mean_span_that_the_error_names_is_the_shortest_that_works(count: int) -> None:
    objective = SpanCorruption(16384)
    vocab = SpecialTokens(50_000, count, 1, 0)
    with pytest.raises(DataError, match="set mean_span_tokens to") as caught:
        objective.check_vocabulary(vocab)
    mean = int(str(caught.value).split("mean_span_tokens to ")[1].split()[0])
    SpanCorruption(16384, mean_span_tokens=mean).check_vocabulary(vocab)
    with pytest.raises(DataError):
        SpanCorruption(16384, mean_span_tokens=mean - 1).check_vocabulary(vocab)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_density": 0.0}, "noise_density must lie between 0 and 1"),
        ({"noise_density": 1.0}, "noise_density must lie between 0 and 1"),
        ({"noise_density": float("nan")}, "noise_density must lie between 0 and 1"),
        ({"mean_span_tokens": 0.5}, "mean_span_tokens must be at least 1"),
        ({"mean_span_tokens": float("nan")}, "mean_span_tokens must be at least 1"),
        ({"input_length_tokens": 2}, "input_length_tokens 2 cannot be made"),
        ({"input_length_tokens": 0}, "input_length_tokens 0 cannot be made"),
        ({"input_length_tokens": 2**20}, "choose a shorter input or a lower density"),
        ({"noise_density": 0.8, "mean_span_tokens": 1.0}, "cannot be made"),
    ],
)
def test_impossible_objectives_are_errors(options: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        SpanCorruption(**{"input_length_tokens": 64, **options})  # type: ignore[arg-type]
