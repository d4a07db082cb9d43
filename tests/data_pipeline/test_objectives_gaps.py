"""Gap sentences: the same sentences as a plain reading of the paper chooses, within the budget."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_rows import FIRST_TEXT_ID, VOCAB, random_keys, random_windows, rows_of

from data_pipeline.corpora.corpus import Document
from data_pipeline.errors import DataError
from data_pipeline.objectives.batch import SpecialTokens, Windows
from data_pipeline.objectives.gap_sentences import GapSentences
from data_pipeline.objectives.sentences import sentence_end_table
from data_pipeline.tokenization.tokenizer import train_tokenizer

KEYS = random_keys(0, 100)
assert VOCAB.sentence_end is not None
ENDS = set(np.flatnonzero(VOCAB.sentence_end).tolist())


def sentences_of(ids: list[int], longest: int) -> list[list[int]]:
    """Cuts a document, one token at a time."""
    found: list[list[int]] = [[]]
    since_end = 0
    for place, token in enumerate(ids):
        behind_end = place > 0 and ids[place - 1] in ENDS and token not in ENDS
        if behind_end or since_end == longest:
            found.append([])
            since_end = 0
        found[-1].append(token)
        since_end += 1
    return [sentence for sentence in found if sentence]


def f1(sentence: set[int], rest: set[int]) -> Fraction:
    return Fraction(2 * len(sentence & rest), len(sentence) + len(rest))


def principal(sentences: list[list[int]], ratio: Fraction) -> list[bool]:
    """Takes the best sentences that fit, one after another."""
    left = int(sum(map(len, sentences)) * ratio)
    scores = []
    for number, sentence in enumerate(sentences):
        others = sentences[:number] + sentences[number + 1 :]
        scores.append(f1(set(sentence), {token for other in others for token in other}))
    chosen = [False] * len(sentences)
    for number in sorted(range(len(sentences)), key=lambda n: (-scores[n], n)):
        if len(sentences[number]) <= left:
            chosen[number] = True
            left -= len(sentences[number])
    return chosen


def expected_row(documents: list[list[int]], ratio: Fraction, longest: int) -> tuple[list, list]:
    inputs, label = [], []
    for document in documents:
        sentences = sentences_of(document, longest)
        for sentence, gone in zip(sentences, principal(sentences, ratio), strict=True):
            inputs += [VOCAB.vocab_size - 1] if gone else sentence
            label += sentence if gone else []
    return [*inputs, VOCAB.eos_token_id], [*label, VOCAB.eos_token_id]


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 2**32),
    lengths=st.lists(st.integers(0, 120), max_size=5),
    ratio=st.sampled_from(["0.2", "0.3", "0.5", "0.15", "0.9"]),
    segments=st.booleans(),
)
def test_the_sentences_are_those_of_a_plain_reading(
    seed: int, lengths: list[int], ratio: str, segments: bool
) -> None:
    objective = GapSentences(121, float(ratio))
    windows = random_windows(seed, lengths, 120, segments=segments)
    # Few distinct ids, so that sentences share some.
    few = FIRST_TEXT_ID + windows.tokens % 40
    tokens = np.where(windows.tokens > 11, few, windows.tokens).astype("<u2")
    windows = Windows(tokens, windows.lengths, windows.segment_ids)
    batch = objective.make(windows, KEYS[: len(lengths)], VOCAB)
    for row, found in enumerate(rows_of(batch)):
        ids = tokens[row, : lengths[row]].tolist()
        numbers = windows.segment_ids[row].tolist() if segments else [1] * 120  # type: ignore[index]
        documents: list[list[int]] = []
        for place, token in enumerate(ids):
            if place == 0 or numbers[place] != numbers[place - 1]:
                documents.append([])
            documents[-1].append(token)
        expected = expected_row(documents, Fraction(ratio), objective.longest_sentence_tokens)
        assert found == expected


def test_about_the_ratio_is_asked_for_and_never_more() -> None:
    objective = GapSentences(1025, 0.2)
    assert objective.target_length_tokens == 205
    windows = random_windows(0, np.full(50, 1024), 1024)
    batch = objective.make(windows, KEYS[:50], VOCAB)
    asked = [len(label) - 1 for _, label in rows_of(batch)]
    assert max(asked) <= 204
    assert sum(asked) / 50 > 0.97 * 204
    no_ends = Windows(np.full((1, 1024), 7, "<u2"), np.array([1024]))
    assert len(rows_of(objective.make(no_ends, KEYS[:1], VOCAB))[0][1]) == 205, "cut to fit"


def test_the_sentence_that_says_most_is_taken() -> None:
    objective = GapSentences(101, 0.2)
    end = 10
    sentences = [[20, 21, 22, 23, end], [30, 31, 32, end], [20, 21, 30, 31, end]]
    rest = [[40 + 3 * n, 41 + 3 * n, 42 + 3 * n, end] for n in range(6)]
    ids = [token for sentence in (*sentences, *rest) for token in sentence]
    windows = Windows(np.array([ids], "<u2"), np.array([len(ids)]))
    inputs, label = rows_of(objective.make(windows, KEYS[:1], VOCAB))[0]
    assert label == [*sentences[2], 1], "it shares words with two others, they with it alone"
    assert inputs[9] == VOCAB.vocab_size - 1


def test_ends_of_sentences_are_read_off_the_pieces(tmp_path: Path) -> None:
    text = 'He said "stop." Did he? Yes! 彼は来た。そう！本当？ A line\nanother line\n'
    tokenizer = train_tokenizer(
        [Document(f"{number}", text * 40) for number in range(4)],
        vocab_size=293,
        sentinels=5,
        out=tmp_path / "tokenizer",
    )
    ends = sentence_end_table(tokenizer)
    assert ends.shape == (tokenizer.vocab_size,)
    assert ends[tokenizer.eos_token_id]
    assert not ends[tokenizer.pad_token_id]
    assert not ends[tokenizer.piece_count :].any(), "sentinels end nothing"
    vocab = SpecialTokens(
        vocab_size=tokenizer.vocab_size,
        sentinel_count=tokenizer.sentinel_count,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        sentence_end=ends,
    )
    GapSentences(64).check_vocabulary(vocab)
    ids = tokenizer.encode(text)
    windows = Windows(ids[None, :], np.array([len(ids)]))
    objective = GapSentences(len(ids) + 1, 0.9)
    batch = objective.make(windows, KEYS[:1], vocab)
    for sentence in tokenizer.decode(batch.labels[0]).replace("\n", "\n|").split("|"):
        assert not sentence or sentence.rstrip('" \n')[-1] in ".?!。！？e", sentence
    found = {tokenizer.decode([piece]).strip() for piece in np.flatnonzero(ends).tolist()}
    assert {".", "?", "!", ""} <= found, "and the line end, stripped to nothing"
    assert {"。", "！", "？"} & found
    assert not any(piece.isalnum() for piece in found)


def test_what_the_vocabulary_lacks_is_said_with_the_remedy() -> None:
    objective = GapSentences(64)
    with pytest.raises(DataError, match="a sentinel for each gap, but the tokenizer has none"):
        objective.check_vocabulary(SpecialTokens(10, 0, 1, 0, np.ones(10, np.bool_)))
    with pytest.raises(DataError, match="which ids end a sentence, and nobody told it: make"):
        objective.check_vocabulary(SpecialTokens(10, 1, 1, 0))
    with pytest.raises(DataError, match="has 0 ends in 10 ids"):
        objective.check_vocabulary(SpecialTokens(10, 1, 1, 0, np.zeros(10, np.bool_)))
    with pytest.raises(DataError, match="9 ends in 9 ids, the vocabulary has 10"):
        objective.check_vocabulary(SpecialTokens(10, 1, 1, 0, np.ones(9, np.bool_)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gap_ratio": 0.0}, "gap_ratio must lie between 0 and 1, not 0.0"),
        ({"gap_ratio": 1.0}, "gap_ratio must lie between 0 and 1, not 1.0"),
        ({"gap_ratio": float("nan")}, "gap_ratio must lie between 0 and 1, not nan"),
        ({"gap_ratio": 0.001}, "is less than a token or all of them"),
        ({"gap_ratio": 0.99999999}, "is less than a token or all of them"),
    ],
)
def test_impossible_ratios_are_errors(options: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        GapSentences(64, **options)
