"""Windows to try objectives on, and the way back from what they make."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.objectives import Batch, Objective, SpecialTokens, Windows, make_objective

NUM_PIECES = 200
FIRST_TEXT_ID = 3
_ENDS = np.zeros(NUM_PIECES + 1000, dtype=np.bool_)
_ENDS[[1, 10, 11]] = True
VOCAB = SpecialTokens(
    vocab_size=len(_ENDS), sentinel_count=1000, eos_token_id=1, pad_token_id=0, sentence_end=_ENDS
)
MODES = {NUM_PIECES: "R", NUM_PIECES + 1: "S", NUM_PIECES + 2: "X"}

# Every kind, with settings that other tests do not take apart.
EXAMPLES: list[tuple[str, dict[str, Any]]] = [
    ("span_corruption", {"input_length_tokens": 96}),
    ("span_corruption", {"input_length_tokens": 64, "noise_density": 0.5, "mean_span_tokens": 1.5}),
    ("ul2", {"input_length_tokens": 96}),
    ("ul2", {"input_length_tokens": 300, "s_weight": 0.0, "shortest_mean_span_tokens": 5.0}),
    ("prefix_lm", {"input_length_tokens": 50}),
    ("prefix_lm", {"input_length_tokens": 50, "longest_target_tokens": 7}),
    ("causal_lm", {"input_length_tokens": 33}),
    ("gap_sentences", {"input_length_tokens": 101}),
    ("gap_sentences", {"input_length_tokens": 60, "gap_ratio": 0.5}),
]
EXAMPLE_NAMES = [f"{kind}-{number}" for number, (kind, _) in enumerate(EXAMPLES)]


def example(number: int) -> Objective:
    kind, settings = EXAMPLES[number]
    return make_objective(kind, **settings)


def random_windows(
    seed: int,
    lengths: npt.ArrayLike,
    width: int,
    *,
    dtype: str = "<u2",
    segments: bool = False,
) -> Windows:
    """Text ids with ends of sentences and of documents; documents numbered where asked."""
    random = np.random.default_rng(seed)
    row_lengths = np.asarray(lengths, dtype=np.int64)
    tokens = random.integers(FIRST_TEXT_ID, NUM_PIECES, (len(row_lengths), width))
    chance = random.random(tokens.shape)
    tokens[chance < 0.12] = 10
    tokens[chance < 0.02] = 1
    segment_ids = np.ones(tokens.shape, dtype=np.uint16)
    segment_ids[:, 1:] += np.cumsum(tokens[:, :-1] == 1, axis=1).astype(np.uint16)
    outside = np.arange(width) >= row_lengths[:, None]
    tokens[outside] = VOCAB.pad_token_id
    segment_ids[outside] = 0
    return Windows(tokens.astype(dtype), row_lengths, segment_ids if segments else None)


def random_keys(seed: int, count: int) -> npt.NDArray[np.uint64]:
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


def rows_of(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Input and label of each row without padding, which is checked to be padding."""
    found = []
    for row in range(len(batch.input_ids)):
        pair = []
        for ids, lengths in (
            (batch.input_ids, batch.input_lengths),
            (batch.labels, batch.label_lengths),
        ):
            length = ids.shape[1] if lengths is None else int(lengths[row])
            assert (ids[row, length:] == VOCAB.pad_token_id).all()
            pair.append(ids[row, :length].tolist())
        found.append((pair[0], pair[1]))
    return found


def without_end(ids: list[int]) -> list[int]:
    assert ids[-1] == VOCAB.eos_token_id
    return ids[:-1]


def merged(inputs: list[int], label: list[int]) -> list[int]:
    """Puts the spans of a label in place of the sentinels of its input, checking their order."""
    assert not label or label[0] >= NUM_PIECES, "a label begins with a sentinel"
    answers: list[list[int]] = []
    for token in label:
        if token >= NUM_PIECES:
            assert token == VOCAB.vocab_size - 1 - len(answers), "sentinels come in order"
            answers.append([])
        else:
            answers[-1].append(token)
    assert all(answers), "no span is empty"
    result: list[int] = []
    sentinels = itertools.count()
    for token in inputs:
        if token >= NUM_PIECES:
            number = next(sentinels)
            assert token == VOCAB.vocab_size - 1 - number
            result += answers[number]
        else:
            result.append(token)
    assert next(sentinels) == len(answers)
    return result


def fits(inputs: list[int], answers: list[int], window: list[int]) -> bool:
    """Whether some cut of the answers into non-empty parts, one a sentinel, gives the window."""
    places = {(0, 0)}
    for token in inputs:
        if token != VOCAB.vocab_size - 1:
            places = {(w + 1, a) for w, a in places if w < len(window) and window[w] == token}
            continue
        after = set()
        for start, used in places:
            size = 0
            while (
                start + size < len(window)
                and used + size < len(answers)
                and window[start + size] == answers[used + size]
            ):
                size += 1
                after.add((start + size, used + size))
        places = after
    return (len(window), len(answers)) in places


def window_back(kind: str, inputs: list[int], label: list[int], window: list[int]) -> list[int]:
    """The window that a row was made of, from the row alone (but for gap sentences)."""
    if kind == "causal_lm":
        assert inputs == label
        return inputs
    inputs, label = without_end(inputs), without_end(label)
    if kind == "prefix_lm":
        return inputs + label
    if kind == "gap_sentences":
        assert fits(inputs, label, window)
        return window
    if kind == "ul2":
        assert inputs[0] in MODES
        inputs = inputs[1:]
    return merged(inputs, label)
