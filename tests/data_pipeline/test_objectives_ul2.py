"""UL2: the published mixture, told by mode tokens, in exact shares, a function of the key alone."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_rows import MODES, NUM_PIECES, VOCAB, random_keys, random_windows, rows_of

from data_pipeline.errors import DataError
from data_pipeline.objectives.batch import SpecialTokens
from data_pipeline.objectives.ul2 import DENOISERS, MixtureOfDenoisers


def test_the_mixture_is_the_published_one() -> None:
    assert [(one.mode, one.mean_span_tokens, one.noise_density) for one in DENOISERS] == [
        ("R", 3, 0.15),
        ("R", 8, 0.15),
        ("S", math.inf, 0.25),
        ("X", 3, 0.5),
        ("X", 8, 0.5),
        ("X", 64, 0.15),
        ("X", 64, 0.5),
    ]
    assert MixtureOfDenoisers(512).shares == pytest.approx([1 / 7] * 7)
    # What the published 512 inputs need fits T5's hundred sentinels.
    objective = MixtureOfDenoisers(512)
    objective.check_vocabulary(SpecialTokens(32_100, 100, 1, 0))
    assert (objective.window_tokens, objective.target_length_tokens) == (567, 380)


@pytest.mark.parametrize("weights", [(2, 1, 4), (1, 1, 1), (0, 1, 0), (1, 0, 3), (0.2, 0.5, 0.3)])
def test_denoisers_come_in_their_shares(weights: tuple[float, float, float]) -> None:
    objective = MixtureOfDenoisers(512, *map(float, weights))
    modes = dict(zip("RSX", np.array(weights) / sum(weights), strict=True))
    assert sum(objective.shares) == pytest.approx(1)
    for mode, share in modes.items():
        pairs = zip(DENOISERS, objective.shares, strict=True)
        assert sum(found for one, found in pairs if one.mode == mode) == pytest.approx(share)
    count = 100_000
    chosen = np.bincount(objective.denoisers(random_keys(0, count)), minlength=7)
    for number, share in enumerate(objective.shares):
        deviation = math.sqrt(count * share * (1 - share))
        assert abs(chosen[number] - count * share) <= 5 * deviation, "exactly 0 where it has none"


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), input_length=st.integers(8, 700))
def test_each_row_is_what_its_mode_says(seed: int, input_length: int) -> None:
    objective = MixtureOfDenoisers(input_length)
    full = objective.window_tokens
    lengths = np.maximum(full - np.arange(24) % 5, 2)
    windows = random_windows(seed, lengths, full)
    keys = random_keys(seed, 24)
    batch = objective.make(windows, keys, VOCAB)
    chosen = [DENOISERS[number] for number in objective.denoisers(keys)]
    for row, (inputs, label) in enumerate(rows_of(batch)):
        one, length = chosen[row], int(lengths[row])
        assert MODES[inputs[0]] == one.mode
        spans = sum(token >= NUM_PIECES for token in inputs[1:])
        noise = min(max(round(length * one.noise_density), 1), length - 1)
        assert len(label) == noise + spans + 1
        assert len(inputs) == length - noise + spans + 2
        if one.mode == "S":
            assert spans == 1
            assert inputs[-2] == VOCAB.vocab_size - 1, "the prefix, then the one sentinel"
        else:
            wanted = max(round(noise / one.mean_span_tokens), 1)
            assert spans == min(wanted, noise, length - noise)


def test_the_window_is_the_longest_that_fits() -> None:
    for input_length, weights in itertools.product((8, 100, 511, 4096), ((2, 1, 4), (0, 1, 0))):
        objective = MixtureOfDenoisers(input_length, *map(float, weights))
        longest, target, spans = 0, 0, 0
        for one, share in zip(DENOISERS, objective.shares, strict=True):
            if share == 0:
                continue
            for length in (objective.window_tokens, objective.window_tokens + 1):
                noise = max(round(length * one.noise_density), 1)
                count = max(round(noise / one.mean_span_tokens), 1)
                if length == objective.window_tokens:
                    assert length - noise + count + 2 <= input_length
                    target, spans = max(target, noise + count + 1), max(spans, count)
                longest = max(longest, length - noise + count + 2)
        assert longest > input_length, "one token more would not fit"
        assert (objective.target_length_tokens, objective.spans) == (target, spans)


def test_too_few_sentinels_count_the_modes_in() -> None:
    objective = MixtureOfDenoisers(512)
    needed = objective.spans + 3
    objective.check_vocabulary(SpecialTokens(5000, needed, 1, 0))
    with pytest.raises(DataError, match=f"{objective.spans} for spans and 3 .* least {needed} sen"):
        objective.check_vocabulary(SpecialTokens(5000, needed - 1, 1, 0))
    longer = MixtureOfDenoisers(16_384, shortest_mean_span_tokens=24.0)
    longer.check_vocabulary(SpecialTokens(50_000, 512, 1, 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_length_tokens": 7}, "input_length_tokens must be at least 8 for ul2, not 7"),
        ({"input_length_tokens": 2**20}, "choose it for less than"),
        ({"r_weight": -1.0}, "r_weight must be 0 or more, not -1.0"),
        ({"x_weight": math.nan}, "x_weight must be 0 or more, not nan"),
        ({"s_weight": math.inf}, "s_weight must be 0 or more, not inf"),
        ({"r_weight": 0.0, "s_weight": 0.0, "x_weight": 0.0}, "are all 0"),
        ({"shortest_mean_span_tokens": 0.5}, "shortest_mean_span_tokens must be at least 1"),
    ],
)
def test_impossible_mixtures_are_errors(options: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        MixtureOfDenoisers(**{"input_length_tokens": 64, **options})  # type: ignore[arg-type]
