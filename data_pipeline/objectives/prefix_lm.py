"""Prefix language modelling: the end of a window is asked for, given its beginning.

Source: Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text
transformer", 2020, section 3.3.1: a text is cut in two at a random place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.objectives.batch import (
    Batch,
    SpecialTokens,
    TokenArray,
    Windows,
    behind,
    full_or_lengths,
)
from data_pipeline.objectives.draws import below, derive
from data_pipeline.objectives.outline import RowOutline, SampleOutline
from data_pipeline.permutation import IntegerArray, KeyArray

_PURPOSE_SPLIT_1 = 0x9F1E


@dataclass(frozen=True)
class PrefixLanguageModel:
    """Cuts each window in two, both parts with at least one token.

    The cut is uniform over all places, or over those near the end that leave no more than
    `longest_target_tokens` behind it. A row of a single token is asked for as a whole.

    Attributes:
        input_length_tokens: Longest inputs, their end-of-sequence id included.
        longest_target_tokens: Most tokens to ask for, the end-of-sequence id not counted; None for
            any number.
    """

    input_length_tokens: int
    longest_target_tokens: int | None = None

    is_decoder_only = False

    def __post_init__(self) -> None:
        if self.input_length_tokens < 2:
            raise DataError(
                f"input_length_tokens must be at least 2, not {self.input_length_tokens}"
            )
        if self.longest_target_tokens is not None and self.longest_target_tokens < 1:
            raise DataError(
                f"longest_target_tokens must be at least 1, not {self.longest_target_tokens}"
            )

    @property
    def window_tokens(self) -> int:
        """Length of the windows: one token at least is cut off, and the end put behind."""
        return self.input_length_tokens

    @property
    def target_length_tokens(self) -> int:
        """Length of the longest targets, their end-of-sequence id included."""
        return self._most_asked() + 1

    def _most_asked(self) -> int:
        most = self.window_tokens - 1
        return most if self.longest_target_tokens is None else min(most, self.longest_target_tokens)

    def check_vocabulary(self, vocab: SpecialTokens) -> None:
        """Needs nothing but an end-of-sequence id, which all vocabularies have."""

    def outline(
        self, lengths: IntegerArray, sample_keys: KeyArray, vocab: SpecialTokens
    ) -> SampleOutline:
        """Draws the cuts; see `Objective.outline`."""
        kept = self._kept(lengths, sample_keys)
        asked = lengths - kept
        none = np.zeros((len(kept), 0), dtype=np.int64)
        begin = np.zeros((len(kept), 1), dtype=np.int64)
        last = np.maximum(lengths - 1, 0)
        # The end belongs to the document that the input breaks off in.
        inputs = RowOutline(begin, kept[:, None], none, kept + 1, np.maximum(kept - 1, 0))
        return SampleOutline(
            inputs, RowOutline(kept[:, None], asked[:, None], none, asked + 1, last)
        )

    def _kept(self, lengths: IntegerArray, sample_keys: KeyArray) -> IntegerArray:
        """Tokens of each window in front of its cut."""
        assert lengths.max(initial=0) <= self.window_tokens
        choices = np.clip(lengths - 1, 1, self._most_asked())
        asked = np.minimum(1 + below(choices, derive(sample_keys, _PURPOSE_SPLIT_1)), lengths)
        return lengths - asked

    def make(self, windows: Windows, sample_keys: KeyArray, vocab: SpecialTokens) -> Batch:
        """Cuts windows in two; see `Objective.make`."""
        kept = self._kept(windows.lengths, sample_keys)
        asked = windows.lengths - kept
        input_ids = _cut(windows.tokens, np.zeros_like(kept), kept, vocab)
        segments = None
        if windows.segment_ids is not None:
            # The end belongs to the document that the input breaks off in.
            ends = windows.segment_ids[np.arange(len(kept)), np.maximum(kept - 1, 0)]
            segments = windows.segment_ids[:, : input_ids.shape[1]].copy()
            segments[np.arange(len(kept)), kept] = ends
            segments[behind(kept + 1, input_ids.shape[1])] = 0
        return Batch(
            input_ids=input_ids,
            labels=_cut(windows.tokens, kept, asked, vocab),
            input_lengths=full_or_lengths(kept + 1),
            label_lengths=full_or_lengths(asked + 1),
            input_segment_ids=segments,
        )


def _cut(
    tokens: TokenArray, starts: IntegerArray, lengths: IntegerArray, vocab: SpecialTokens
) -> TokenArray:
    """Parts of rows with the end behind them: [n, longest + 1]."""
    width = int(lengths.max(initial=0)) + 1
    index = (np.arange(len(tokens)) * tokens.shape[1] + starts)[:, None] + np.arange(width)
    rows: TokenArray = tokens.ravel().take(index, mode="clip")
    rows[behind(lengths, width)] = vocab.pad_token_id
    rows[np.arange(len(rows)), lengths] = vocab.eos_token_id
    return rows
