"""What holds for every objective: nothing is lost, nothing depends on the batch, the registry."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_rows import (
    EXAMPLE_NAMES,
    EXAMPLES,
    VOCAB,
    example,
    random_keys,
    random_windows,
    rows_of,
    window_back,
)

from data_pipeline.errors import DataError
from data_pipeline.objectives import OBJECTIVES, Batch, SpecialTokens, Windows, make_objective

every_example = pytest.mark.parametrize("number", range(len(EXAMPLES)), ids=EXAMPLE_NAMES)


def lengths_up_to(full: int, *, shortest: int) -> st.SearchStrategy[int]:
    """Any, and often full rows and the shortest, which are special."""
    return st.just(full) | st.integers(shortest, 3) | st.integers(shortest, full)


def test_every_kind_has_an_example() -> None:
    assert {kind for kind, _ in EXAMPLES} == set(OBJECTIVES)


@every_example
@settings(deadline=None, max_examples=40)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_no_token_is_lost_and_none_invented(number: int, data: st.DataObject, seed: int) -> None:
    objective = example(number)
    full = objective.window_tokens
    lengths = data.draw(st.lists(lengths_up_to(full, shortest=0), max_size=6))
    segments = data.draw(st.booleans())
    windows = random_windows(seed, lengths, full, segments=segments)
    batch = objective.make(windows, random_keys(seed, len(lengths)), VOCAB)
    assert batch.input_ids.dtype == batch.labels.dtype == windows.tokens.dtype
    assert (batch.input_segment_ids is not None) == segments
    for ids in (batch.input_ids, batch.labels):
        assert len(ids) == len(lengths)
        assert ids.max(initial=0) < VOCAB.vocab_size
    for row, (inputs, label) in enumerate(rows_of(batch)):
        window = windows.tokens[row, : lengths[row]].tolist()
        assert window_back(EXAMPLES[number][0], inputs, label, window) == window
        assert len(inputs) <= objective.input_length_tokens
        assert len(label) <= objective.target_length_tokens


@every_example
@settings(deadline=None, max_examples=25)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_a_row_depends_on_nothing_but_itself(number: int, data: st.DataObject, seed: int) -> None:
    objective = example(number)
    full = objective.window_tokens
    lengths = data.draw(st.lists(lengths_up_to(full, shortest=1), min_size=1, max_size=7))
    order = data.draw(st.permutations(range(len(lengths))))
    windows = random_windows(seed, lengths, full, segments=True)
    keys = random_keys(seed, len(lengths))
    before = windows.tokens.copy()
    together = rows_of(objective.make(windows, keys, VOCAB))
    assert np.array_equal(windows.tokens, before), "windows are not written to"
    segments = segments_of(objective.make(windows, keys, VOCAB))
    wide = dataclasses.replace(windows, tokens=windows.tokens.astype("<u4"))
    assert rows_of(objective.make(wide, keys, VOCAB)) == together
    shuffled = objective.make(chosen_rows(windows, order), keys[order], VOCAB)
    assert rows_of(shuffled) == [together[row] for row in order]
    for row in range(len(lengths)):
        alone = objective.make(chosen_rows(windows, [row]), keys[[row]], VOCAB)
        assert rows_of(alone) == [together[row]]
        assert segments_of(alone) == [segments[row]]


def chosen_rows(windows: Windows, rows: list[int]) -> Windows:
    assert windows.segment_ids is not None
    return Windows(windows.tokens[rows], windows.lengths[rows], windows.segment_ids[rows])


def segments_of(batch: Batch) -> list[list[int]]:
    assert batch.input_segment_ids is not None
    assert batch.input_segment_ids.dtype == np.uint16
    assert batch.input_segment_ids.shape == batch.input_ids.shape
    found = []
    for row, ids in enumerate(batch.input_segment_ids):
        full = batch.input_lengths is None
        length = len(ids) if full else int(batch.input_lengths[row])  # type: ignore[index]
        assert not ids[length:].any()
        found.append(ids[:length].tolist())
    return found


@every_example
def test_segments_name_the_document_of_each_input_token(number: int) -> None:
    """Documents of one repeated id each, so that the window shows where a token is from."""
    objective = example(number)
    full = objective.window_tokens
    ids = np.repeat(np.arange(20, 20 + full), 9)[:full]
    windows = Windows(
        np.tile(ids, (12, 1)).astype("<u2"),
        np.full(12, full),
        np.tile(ids - 19, (12, 1)).astype(np.uint16),
    )
    batch = objective.make(windows, random_keys(3, 12), VOCAB)
    for (inputs, _), segments in zip(rows_of(batch), segments_of(batch), strict=True):
        text = [
            (token, number) for token, number in zip(inputs, segments, strict=True) if token > 1
        ]
        assert all(number == token - 19 for token, number in text if token < 200)
        assert segments == sorted(segments), "sentinels and the end stand between their neighbours"
        assert segments[0] == 1
        if EXAMPLES[number][0] == "span_corruption":
            assert segments[-1] == int(ids[-1]) - 19


@every_example
def test_the_longest_rows_are_as_long_as_stated(number: int) -> None:
    kind, settings_given = EXAMPLES[number]
    objective = example(number)
    windows = random_windows(1, np.full(4000, objective.window_tokens), objective.window_tokens)
    if kind == "gap_sentences":
        # One-token sentences: as many gaps as there are tokens to ask for.
        windows.tokens[:, ::2] = np.where(np.arange(0, objective.window_tokens, 2) % 4, 10, 11)
    batch = objective.make(windows, random_keys(1, 4000), VOCAB)
    assert batch.labels.shape[1] == objective.target_length_tokens
    if kind == "gap_sentences":
        assert batch.input_ids.shape[1] <= objective.input_length_tokens
        nothing = Windows(np.full((1, objective.window_tokens), 10, "<u2"), windows.lengths[:1])
        unchanged = objective.make(nothing, random_keys(1, 1), VOCAB).input_ids
        assert unchanged.shape[1] <= objective.input_length_tokens
    elif kind == "ul2":
        # The longest input grows by two where a window gets another span.
        assert 0 <= objective.input_length_tokens - batch.input_ids.shape[1] <= 1
    else:
        assert batch.input_ids.shape[1] == objective.input_length_tokens
    assert settings_given["input_length_tokens"] == objective.input_length_tokens


@every_example
def test_full_windows_of_equal_rows_have_no_lengths(number: int) -> None:
    objective = example(number)
    windows = random_windows(2, [objective.window_tokens], objective.window_tokens)
    batch = objective.make(windows, random_keys(2, 1), VOCAB)
    assert batch.input_lengths is None
    assert batch.label_lengths is None
    assert objective.is_decoder_only == (batch.labels is batch.input_ids)


@pytest.mark.parametrize(
    ("kind", "given_settings", "message"),
    [
        ("span_coruption", {}, "no objective 'span_coruption'; did you mean 'span_corruption'?"),
        ("zzz", {}, "no objective 'zzz'; choose from span_corruption, ul2, prefix_lm, causal_lm"),
        ("ul2", {"lenth": 3}, "objective ul2 has no setting 'lenth'; choose from input_length_tok"),
        ("ul2", {"r_wieght": 3}, "has no setting 'r_wieght'; did you mean 'r_weight'?"),
        ("ul2", {}, "objective ul2 needs the setting 'input_length_tokens'"),
        ("ul2", {"input_length_tokens": "8"}, "input_length_tokens must be of type int, not '8'"),
        ("ul2", {"input_length_tokens": True}, "must be of type int, not True"),
        ("ul2", {"input_length_tokens": 64.0}, "must be of type int, not 64.0"),
        (
            "gap_sentences",
            {"input_length_tokens": 64, "gap_ratio": None},
            "of type float, not None",
        ),
    ],
)
def test_wrong_names_and_settings_are_one_line(
    kind: str, given_settings: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        make_objective(kind, **given_settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_is_what_is_neither_sentinel_nor_end_nor_padding() -> None:
    vocab = SpecialTokens(vocab_size=12, sentinel_count=2, eos_token_id=1, pad_token_id=0)
    ids = np.array([[-100, 0, 1, 2], [9, 10, 11, 3]])
    assert vocab.is_text(ids).tolist() == [[False, False, False, True], [True, False, False, True]]
    assert vocab.sentinel_ids(2).tolist() == [11, 10]
