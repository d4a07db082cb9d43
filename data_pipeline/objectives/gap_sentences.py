"""Gap sentences: the sentences that say most about the rest of a text are asked for.

Source: Zhang et al., "PEGASUS: Pre-training with extracted gap-sentences for abstractive
summarization", 2020, section 3.1: principal sentences by ROUGE-1 F1 against the rest of their
document, scored independently, n-grams counted once ("Ind-Uniq"), as Guo et al., "LongT5: Efficient
text-to-text transformer for long sequences", 2022, section 3.2, use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError
from data_pipeline.objectives.batch import (
    Batch,
    BoolArray,
    SpecialTokens,
    TokenArray,
    Windows,
    full_or_lengths,
)
from data_pipeline.objectives.sentences import Sentences
from data_pipeline.permutation import IntegerArray, KeyArray

_LONGEST_SENTENCE_TOKENS = 128


@dataclass(frozen=True)
class GapSentences:
    """Replaces principal sentences by sentinel 0, one each, and asks for them in their order.

    Each document of a window is its own text: its sentences are scored against the rest of it, and
    taken from the best on as long as they fit into `gap_ratio` of its tokens, rounded down; those
    that do not fit are passed over. So a window never loses more than `gap_ratio` of its tokens,
    and an input, of which each gap took away at least one token for its sentinel, is never longer
    than the window and the end. Both maxima hold by construction. A document of a single sentence
    keeps it.

    Nothing is drawn: a window has the same gaps in every epoch.

    Attributes:
        input_length_tokens: Longest inputs, their end-of-sequence id included.
        gap_ratio: Share of the tokens to ask for; a little less is reached, as sentences are whole.
    """

    input_length_tokens: int
    gap_ratio: float = 0.2

    is_decoder_only = False

    def __post_init__(self) -> None:
        if not 0 < self.gap_ratio < 1:
            raise DataError(f"gap_ratio must lie between 0 and 1, not {self.gap_ratio!r}")
        if self._ratio == 1 or self._budget(self.input_length_tokens - 1) < 1:
            raise DataError(
                f"gap_ratio {self.gap_ratio} of input_length_tokens {self.input_length_tokens} is "
                "less than a token or all of them: choose a longer input or another ratio"
            )

    @cached_property
    def _ratio(self) -> Fraction:
        # As written, not as a binary number, so that a fifth of 5 tokens is exactly 1.
        return Fraction(str(self.gap_ratio)).limit_denominator(10**6)

    def _budget(self, tokens: int) -> int:
        return tokens * self._ratio.numerator // self._ratio.denominator

    @property
    def window_tokens(self) -> int:
        """Length of the windows: that of the inputs without the end."""
        return self.input_length_tokens - 1

    @property
    def target_length_tokens(self) -> int:
        """Length of the longest targets, their end-of-sequence id included."""
        return self._budget(self.window_tokens) + 1

    @property
    def longest_sentence_tokens(self) -> int:
        """Where longer sentences are cut, so that text without ends has some that fit."""
        return min(_LONGEST_SENTENCE_TOKENS, max(self._budget(self.window_tokens) // 2, 1))

    def check_vocabulary(self, vocab: SpecialTokens) -> None:
        """Makes sure that there is a sentinel, and that sentences can be told.

        Raises:
            DataError: If not.
        """
        if vocab.sentinel_count < 1:
            raise DataError(
                "gap_sentences puts a sentinel for each gap, but the tokenizer has none: train a "
                "tokenizer with at least 1"
            )
        if vocab.sentence_end is None:
            raise DataError(
                "gap_sentences must know which ids end a sentence, and nobody told it: make the "
                "vocabulary from the tokenizer of the data set"
            )
        num_ends = int(vocab.sentence_end.sum())
        if vocab.sentence_end.shape != (vocab.vocab_size,) or num_ends == 0:
            raise DataError(
                f"the table of sentence ends has {num_ends} ends in {len(vocab.sentence_end)} ids, "
                f"the vocabulary has {vocab.vocab_size} ids: make it from the tokenizer of the "
                "data set"
            )

    def outline(self, lengths: IntegerArray, sample_keys: KeyArray, vocab: SpecialTokens) -> None:
        """Cannot tell without all tokens; see `Objective.outline`."""

    def make(self, windows: Windows, sample_keys: KeyArray, vocab: SpecialTokens) -> Batch:
        """Takes sentences out; see `Objective.make`. The keys are not used."""
        assert windows.lengths.max(initial=0) <= self.window_tokens
        assert vocab.sentence_end is not None, "check_vocabulary has seen to it"
        num_rows = len(windows.lengths)
        sentences = Sentences(windows, vocab.sentence_end, self.longest_sentence_tokens)
        chosen = self._choose(sentences)
        asked = chosen[sentences.of_token]
        # The first token of a gap makes place for its sentinel.
        is_gap = np.zeros(len(sentences.tokens), dtype=np.bool_)
        is_gap[sentences.starts[chosen]] = True
        stays = ~asked | is_gap
        row_of_token = sentences.rows[sentences.of_token]
        sentinel = vocab.vocab_size - 1
        input_tokens = np.where(is_gap, sentences.tokens.dtype.type(sentinel), sentences.tokens)
        inputs = _Rows(row_of_token[stays], num_rows)
        targets = _Rows(row_of_token[asked], num_rows)
        segments = None
        if windows.segment_ids is not None:
            last = windows.segment_ids[np.arange(num_rows), np.maximum(windows.lengths - 1, 0)]
            is_token = np.arange(windows.tokens.shape[1]) < windows.lengths[:, None]
            segments = inputs.fill(windows.segment_ids[is_token][stays], last, 0)
        return Batch(
            input_ids=inputs.fill(input_tokens[stays], vocab.eos_token_id, vocab.pad_token_id),
            labels=targets.fill(sentences.tokens[asked], vocab.eos_token_id, vocab.pad_token_id),
            input_lengths=full_or_lengths(inputs.lengths),
            label_lengths=full_or_lengths(targets.lengths),
            input_segment_ids=segments,
        )

    def _choose(self, sentences: Sentences) -> BoolArray:
        """Which sentences to ask for: [sentences]."""
        documents, lengths = sentences.documents, sentences.lengths
        totals = np.bincount(documents, weights=lengths).astype(np.int64)
        left = totals * self._ratio.numerator // self._ratio.denominator
        # A document that is all one sentence has no rest: its budget is less than the sentence.
        scores = rouge_1_against_rest(sentences)
        # By document, then the best first, then the first first.
        waiting = np.lexsort((-scores, documents))
        chosen = np.zeros(len(lengths), dtype=np.bool_)
        waiting = waiting[lengths[waiting] <= left[documents[waiting]]]
        while len(waiting):
            # Takes, of every document at once, all that fit before the first that does not.
            own, need = documents[waiting], lengths[waiting]
            needed = np.cumsum(need)
            first = np.searchsorted(own, own)
            taken = needed - (needed - need)[first] <= left[own]
            chosen[waiting[taken]] = True
            left -= np.bincount(own[taken], need[taken], len(left)).astype(np.int64)
            waiting = waiting[~taken]
            waiting = waiting[lengths[waiting] <= left[documents[waiting]]]
        return chosen


def rouge_1_against_rest(sentences: Sentences) -> npt.NDArray[np.float64]:
    """F1 of the distinct ids of each sentence and those of the rest of its document.

    Of a sentence with u distinct ids, o of which occur elsewhere in its document too, the rest of
    which has r distinct ids, that is 2 o / (u + r): the harmonic mean of o/u and o/r.
    """
    documents = sentences.documents[sentences.of_token]
    ids = sentences.tokens.astype(np.int64)
    word = documents * (int(ids.max(initial=0)) + 1) + ids
    # Pairs of word (an id in a document) and sentence, each once, by word.
    count = max(len(sentences.starts), 1)
    pairs = np.sort(word * count + sentences.of_token)
    pairs = pairs[np.diff(pairs, prepend=-1) != 0]
    words, owners = pairs // count, pairs % count
    first = np.flatnonzero(np.diff(words, prepend=-1) != 0)
    occurs_in = np.diff(first, append=len(words))
    is_shared = np.repeat(occurs_in > 1, occurs_in)
    distinct = np.bincount(owners, minlength=len(sentences.starts))
    shared = np.bincount(owners[is_shared], minlength=len(sentences.starts))
    in_document = np.bincount(sentences.documents[owners[first]])
    rest = in_document[sentences.documents] - (distinct - shared)
    scores: npt.NDArray[np.float64] = 2 * shared / (distinct + rest)
    return scores


class _Rows:
    """Rows of a batch out of tokens that stand one behind another."""

    def __init__(self, row_of_token: IntegerArray, num_rows: int) -> None:
        """Lays them out; `row_of_token` [tokens] never falls."""
        counts = np.bincount(row_of_token, minlength=num_rows)
        self._ends = counts
        self.lengths: IntegerArray = counts + 1
        self._rows = row_of_token
        self._columns = np.arange(len(row_of_token)) - np.repeat(np.cumsum(counts) - counts, counts)

    def fill(self, values: TokenArray, end: npt.ArrayLike, padding: int) -> TokenArray:
        """[rows, longest] with `end` behind each row's values and padding behind that."""
        shape = (len(self.lengths), int(self.lengths.max(initial=0)))
        rows: TokenArray = np.full(shape, padding, dtype=values.dtype)
        rows[self._rows, self._columns] = values
        rows[np.arange(len(rows)), self._ends] = end
        return rows
