"""Prefix and causal language modelling: where windows are cut, and that nothing else happens."""

from __future__ import annotations

import math

import numpy as np
import pytest
from objective_rows import VOCAB, random_keys, random_windows, rows_of

from data_pipeline.errors import DataError
from data_pipeline.objectives.causal_lm import CausalLanguageModel
from data_pipeline.objectives.prefix_lm import PrefixLanguageModel


@pytest.mark.parametrize(("longest", "choices"), [(None, 19), (100, 19), (5, 5), (1, 1)])
def test_prefixes_end_anywhere_with_equal_chance(longest: int | None, choices: int) -> None:
    objective = PrefixLanguageModel(20, longest)
    assert (objective.window_tokens, objective.target_length_tokens) == (20, choices + 1)
    num_rows = 20_000
    batch = objective.make(
        random_windows(0, np.full(num_rows, 20), 20), random_keys(0, num_rows), VOCAB
    )
    asked = np.array([len(label) - 1 for _, label in rows_of(batch)])
    counts = np.bincount(asked, minlength=choices + 1)[1:]
    assert len(counts) == choices
    expected = num_rows / choices
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square <= choices - 1 + 5 * math.sqrt(2 * (choices - 1))


def test_the_end_of_a_prefix_belongs_to_the_document_it_breaks_off_in() -> None:
    windows = random_windows(5, np.full(900, 40), 40, segments=True)
    batch = PrefixLanguageModel(40).make(windows, random_keys(5, 900), VOCAB)
    assert windows.segment_ids is not None
    assert batch.input_segment_ids is not None
    for row, (inputs, _) in enumerate(rows_of(batch)):
        prefix = len(inputs) - 1
        expected = windows.segment_ids[row, :prefix].tolist()
        assert batch.input_segment_ids[row, :prefix].tolist() == expected
        assert batch.input_segment_ids[row, prefix] == expected[-1]


def test_causal_batches_are_the_windows_themselves() -> None:
    objective = CausalLanguageModel(64)
    assert objective.is_decoder_only
    assert objective.window_tokens == objective.target_length_tokens == 64
    windows = random_windows(0, [64, 64], 64, segments=True)
    batch = objective.make(windows, random_keys(0, 2), VOCAB)
    assert np.shares_memory(batch.input_ids, windows.tokens), "nothing is copied"
    assert batch.labels is batch.input_ids
    shorter = random_windows(0, [10, 12], 64)
    batch = objective.make(shorter, random_keys(0, 2), VOCAB)
    assert batch.input_ids.shape == (2, 12)
    assert batch.label_lengths is not None
    assert batch.label_lengths.tolist() == [10, 12]


def test_settings_out_of_range_are_errors() -> None:
    with pytest.raises(DataError, match="input_length_tokens must be at least 2, not 1"):
        PrefixLanguageModel(1)
    with pytest.raises(DataError, match="longest_target_tokens must be at least 1, not 0"):
        PrefixLanguageModel(20, 0)
    with pytest.raises(DataError, match="input_length_tokens must be at least 2, not 1"):
        CausalLanguageModel(1)
