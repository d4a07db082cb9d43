"""Span corruption: T5's exact lengths, nothing lost, nothing depending on the batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.objective import SpanCorruption, SpecialTokens

VOCAB = SpecialTokens(vocab_size=1200, sentinel_count=1000, eos_token_id=1)


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
    assert objective.raw_length_tokens == raw
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
    rows=st.integers(0, 4),
    seed=st.integers(0, 2**63 - 1),
    first=st.integers(0, 2**40),
)
def test_merging_inputs_and_labels_gives_the_window_back(
    input_length: int, density: float, mean: float, rows: int, seed: int, first: int
) -> None:
    try:
        objective = SpanCorruption(input_length, density, mean)
    except DataError:
        # Which these are, `test_impossible_objectives_are_errors` looks at.
        return
    assume(objective.raw_length_tokens < 5000)
    assume(objective.spans <= VOCAB.sentinel_count)
    windows = np.random.default_rng(seed).integers(2, 200, (rows, objective.raw_length_tokens))
    samples = np.arange(first, first + rows)
    inputs, labels = objective.corrupt(windows.astype("<u2"), samples, seed=seed, vocab=VOCAB)
    assert inputs.shape == (rows, input_length)
    assert labels.shape == (rows, objective.target_length_tokens)
    assert inputs.dtype == labels.dtype == np.int64
    for window, row, label in zip(windows, inputs, labels, strict=True):
        assert row[-1] == label[-1] == VOCAB.eos_token_id
        assert merged(row[:-1], label[:-1], objective.spans) == window.tolist()


def merged(row: np.ndarray, label: np.ndarray, spans: int) -> list[int]:
    """Puts the spans of the labels in place of the sentinels of the inputs."""
    answers: list[list[int]] = []
    for token in label.tolist():
        if token >= 200:
            assert token == 1199 - len(answers), "sentinels come in order"
            answers.append([])
        else:
            answers[-1].append(token)
    assert len(answers) == spans
    assert all(answers), "no span is empty"
    result, seen, previous = [], 0, 1199
    for token in row.tolist():
        if token >= 200:
            assert token == 1199 - seen
            assert previous < 200, "kept text stands before each span"
            result += answers[seen]
            seen += 1
        else:
            result.append(token)
        previous = token
    assert seen == spans
    return result


@settings(deadline=None)
@given(samples=st.lists(st.integers(0, 10**12), min_size=1, max_size=9), seed=st.integers(0, 99))
def test_a_row_does_not_depend_on_its_company(samples: list[int], seed: int) -> None:
    objective = SpanCorruption(64)
    windows = np.arange(len(samples) * objective.raw_length_tokens).reshape(len(samples), -1) % 200
    together = objective.corrupt(windows, samples, seed=seed, vocab=VOCAB)
    for row, sample in enumerate(samples):
        alone = objective.corrupt(windows[row : row + 1], [sample], seed=seed, vocab=VOCAB)
        for many, one in zip(together, alone, strict=True):
            assert np.array_equal(many[row], one[0])


def test_spans_are_uniform_over_all_ways_to_cut() -> None:
    objective = SpanCorruption(512)
    rows = 4000
    windows = np.full((rows, objective.raw_length_tokens), 7)
    inputs, labels = objective.corrupt(windows, np.arange(rows), seed=0, vocab=VOCAB)
    # 85 tokens in 28 parts, without replacement: the first part is 1 with probability 27/84.
    starts = np.diff(np.flatnonzero((labels[:, :-1] >= 200).ravel()))
    lengths = starts[np.arange(len(starts)) % 28 != 27] - 1
    assert (lengths == 1).mean() == pytest.approx(27 / 84, abs=0.01)
    assert lengths.mean() == pytest.approx(85 / 28, abs=0.03)
    # Every place of the window is asked for about as often, but for the ends.
    corrupted = np.zeros(objective.raw_length_tokens)
    for row, label in zip(inputs[:1000], labels[:1000], strict=True):
        position, spans = 0, [*np.flatnonzero(label >= 200).tolist(), len(label) - 1]
        number = 0
        for token in row[:-1].tolist():
            if token < 200:
                position += 1
                continue
            length = spans[number + 1] - spans[number] - 1
            corrupted[position : position + length] += 1
            position, number = position + length, number + 1
    middle = corrupted[60:-60].reshape(-1, 56).mean(axis=1) / 1000
    assert np.abs(middle - 0.15).max() < 0.02


def test_masks_differ_by_sample_and_seed() -> None:
    objective = SpanCorruption(512)
    windows = np.full((64, objective.raw_length_tokens), 7)
    inputs, _ = objective.corrupt(windows, np.arange(64), seed=0, vocab=VOCAB)
    assert len(np.unique(inputs, axis=0)) == 64
    others, _ = objective.corrupt(windows, np.arange(64), seed=1, vocab=VOCAB)
    assert len(np.unique(np.concatenate([inputs, others]), axis=0)) == 128


def test_the_masks_never_change() -> None:
    objective = SpanCorruption(48)
    windows = np.arange(2, 2 + objective.raw_length_tokens)[None, :].repeat(2, axis=0)
    inputs, labels = objective.corrupt(windows, [5, 10**9], seed=17, vocab=VOCAB)
    assert (inputs.tolist(), labels.tolist()) == GOLDEN_MASKS


# Frozen: a change here is another objective, which needs new versions of its keys.
GOLDEN_MASKS = (
    [
        [
            2,
            3,
            4,
            5,
            6,
            7,
            8,
            9,
            10,
            11,
            12,
            13,
            14,
            15,
            16,
            17,
            18,
            19,
            20,
            21,
            22,
            23,
            24,
            25,
            26,
            27,
            28,
            29,
            1199,
            31,
            32,
            33,
            34,
            1198,
            39,
            40,
            41,
            42,
            43,
            44,
            45,
            46,
            47,
            48,
            49,
            50,
            1197,
            1,
        ],
        [
            2,
            3,
            4,
            5,
            6,
            7,
            8,
            9,
            10,
            11,
            12,
            13,
            1199,
            16,
            17,
            18,
            19,
            20,
            21,
            22,
            23,
            24,
            25,
            26,
            27,
            28,
            29,
            30,
            31,
            32,
            33,
            34,
            35,
            36,
            37,
            38,
            39,
            40,
            41,
            42,
            43,
            44,
            45,
            1198,
            49,
            50,
            1197,
            1,
        ],
    ],
    [
        [1199, 30, 1198, 35, 36, 37, 38, 1197, 51, 52, 53, 1],
        [1199, 14, 15, 1198, 46, 47, 48, 1197, 51, 52, 53, 1],
    ],
)


def test_too_few_sentinels_name_both_numbers() -> None:
    objective = SpanCorruption(4096)
    with pytest.raises(DataError, match=r"has 100 sentinels, but .* 4096 .* need 227"):
        objective.check_sentinels(100)
    objective.check_sentinels(227)
    with pytest.raises(DataError, match="need 227"):
        objective.corrupt(np.zeros((1, 4550)), [0], seed=0, vocab=SpecialTokens(500, 226, 1))


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
        ({"noise_density": 0.8, "mean_span_tokens": 1.0}, "cannot be made"),
    ],
)
def test_impossible_objectives_are_errors(options: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        SpanCorruption(**{"input_length_tokens": 64, **options})  # type: ignore[arg-type]
