"""Span corruption: some spans of a window are replaced by sentinels and asked for instead.

Source: Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text
transformer", 2020, section 3.1.4, with the lengths and span counts of its published
implementation: 568 tokens become 512 and 114, 4,550 become 4,096 and 910.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.objectives.batch import Batch, SpecialTokens, Windows
from data_pipeline.objectives.draws import MAXIMUM_TOKENS
from data_pipeline.objectives.outline import SampleOutline
from data_pipeline.objectives.spans import corrupt_spans, noise_tokens, num_spans, outline_spans
from data_pipeline.permutation import IntegerArray, KeyArray


@dataclass(frozen=True)
class SpanCorruption:
    """Span corruption to inputs of one exact length, without any padding where windows are full.

    Rows that are shorter than a window get spans by the same rule from their own length.

    Attributes:
        input_length_tokens: Length of the inputs, their end-of-sequence id included.
        noise_density: Share of a window that is asked for.
        mean_span_tokens: Mean length of a span.
    """

    input_length_tokens: int
    noise_density: float = 0.15
    mean_span_tokens: float = 3.0

    is_decoder_only = False

    def __post_init__(self) -> None:
        if not 0 < self.noise_density < 1:
            raise DataError(f"noise_density must lie between 0 and 1, not {self.noise_density!r}")
        if not self.mean_span_tokens >= 1:
            raise DataError(f"mean_span_tokens must be at least 1, not {self.mean_span_tokens!r}")
        impossible = (
            f"input_length_tokens {self.input_length_tokens} cannot be made with noise_density "
            f"{self.noise_density} and mean_span_tokens {self.mean_span_tokens}: choose"
        )
        if self.input_length_tokens < 3 or not self._exact():
            raise DataError(f"{impossible} a longer input, a lower density, or longer spans")
        if self.window_tokens >= MAXIMUM_TOKENS:
            raise DataError(
                f"{impossible} a shorter input or a lower density, for windows of less than "
                f"{MAXIMUM_TOKENS} tokens"
            )

    def _exact(self) -> bool:
        """Whether windows give inputs of just the length, with as many spans as intended."""
        _, spans, length = self._numbers(self.window_tokens)
        noise = self.noise_tokens
        return length == self.input_length_tokens and spans == max(
            round(noise / self.mean_span_tokens), 1
        )

    @cached_property
    def window_tokens(self) -> int:
        """Length of the windows: the longest whose input is not longer than wanted."""
        low, high = 2, 4
        while self._numbers(high)[2] <= self.input_length_tokens:
            low, high = high, 2 * high
        # The input never gets shorter with the window and grows by at most two tokens with it.
        while high - low > 1:
            middle = (low + high) // 2
            if self._numbers(middle)[2] <= self.input_length_tokens:
                low = middle
            else:
                high = middle
        return low

    @cached_property
    def noise_tokens(self) -> int:
        """Tokens of a full window that are asked for."""
        return self._numbers(self.window_tokens)[0]

    @cached_property
    def spans(self) -> int:
        """Spans in a full window: so many sentinels are needed."""
        return self._numbers(self.window_tokens)[1]

    @cached_property
    def target_length_tokens(self) -> int:
        """Length of the targets, their end-of-sequence id included."""
        return self.noise_tokens + self.spans + 1

    def _numbers(self, window_tokens: int) -> tuple[int, int, int]:
        """Tokens asked for, spans, and length of the input of a window."""
        lengths = np.array([window_tokens])
        noise = noise_tokens(lengths, self.noise_density)
        spans = int(num_spans(lengths, noise, self.mean_span_tokens)[0])
        return int(noise[0]), spans, window_tokens - int(noise[0]) + spans + 1

    def check_vocabulary(self, vocab: SpecialTokens) -> None:
        """Makes sure that every span of a window gets a sentinel of its own.

        Raises:
            DataError: If they are too few.
        """
        if vocab.sentinel_count >= self.spans:
            return
        raise DataError(
            f"the tokenizer has {vocab.sentinel_count} sentinels, but inputs of "
            f"{self.input_length_tokens} tokens at noise_density {self.noise_density} and "
            f"mean_span_tokens {self.mean_span_tokens:g} need {self.spans}: train a tokenizer with "
            f"at least {self.spans} sentinels{self._longer_spans(vocab.sentinel_count)}"
        )

    def _longer_spans(self, sentinel_count: int) -> str:
        """The remedy that needs no other tokenizer, if there is one."""
        if sentinel_count < 1:
            return ""
        mean = math.ceil(self.noise_tokens / (sentinel_count + 0.5))
        while not self._enough(sentinel_count, mean):
            mean += 1
        return f", or set mean_span_tokens to {mean} or more"

    def _enough(self, sentinel_count: int, mean_span_tokens: int) -> bool:
        """Whether so many sentinels suffice for spans of another mean length."""
        try:
            other = dataclasses.replace(self, mean_span_tokens=float(mean_span_tokens))
        except DataError:
            # Some lengths cannot be made exactly; the next mean can.
            return False
        return other.spans <= sentinel_count

    def outline(
        self, lengths: IntegerArray, sample_keys: KeyArray, vocab: SpecialTokens
    ) -> SampleOutline:
        """Draws spans; see `Objective.outline`."""
        assert lengths.max(initial=0) <= self.window_tokens
        noise = noise_tokens(lengths, self.noise_density)
        spans = num_spans(lengths, noise, self.mean_span_tokens)
        return outline_spans(lengths, noise, spans, sample_keys)

    def make(self, windows: Windows, sample_keys: KeyArray, vocab: SpecialTokens) -> Batch:
        """Corrupts windows; see `Objective.make`."""
        return corrupt_spans(windows, self.outline(windows.lengths, sample_keys, vocab), vocab)
