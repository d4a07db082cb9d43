"""Span corruption: some spans of a window are replaced by sentinels and asked for instead.

Source: Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text
transformer", 2020, section 3.1.4, with the lengths and span counts of its published
implementation: 568 tokens become 512 and 114, 4,550 become 4,096 and 910.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest
from data_pipeline.permutation import IntegerArray, KeyArray, derive_keys, permute

BoolArray = npt.NDArray[np.bool_]

# A new version of the masks must get new numbers, so that they are other masks.
_PURPOSE_CORRUPTED_1 = 0x5C01
_PURPOSE_KEPT_1 = 0x5C02


@dataclass(frozen=True)
class SpecialTokens:
    """The ids an objective needs.

    Attributes:
        vocab_size: All ids; sentinel 0 is `vocab_size - 1`, sentinel 1 the one below it.
        sentinel_count: How many sentinels there are.
        eos_token_id: Closes inputs and targets.
    """

    vocab_size: int
    sentinel_count: int
    eos_token_id: int

    @classmethod
    def from_manifest(cls, manifest: Manifest) -> SpecialTokens:
        """Those of a data set."""
        return cls(manifest.vocab_size, manifest.sentinel_count, manifest.eos_token_id)

    def sentinel_ids(self, count: int) -> IntegerArray:
        """Ids of the first `count` sentinels, int64 [count]."""
        return self.vocab_size - 1 - np.arange(count, dtype=np.int64)


@dataclass(frozen=True)
class SpanCorruption:
    """Span corruption to inputs of one exact length, without any padding.

    Attributes:
        input_length_tokens: Length of the inputs, their end-of-sequence id included.
        noise_density: Share of a window that is asked for.
        mean_span_tokens: Mean length of a span.
    """

    input_length_tokens: int
    noise_density: float = 0.15
    mean_span_tokens: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.noise_density < 1:
            raise DataError(f"noise_density must lie between 0 and 1, not {self.noise_density!r}")
        if not self.mean_span_tokens >= 1:
            raise DataError(f"mean_span_tokens must be at least 1, not {self.mean_span_tokens!r}")
        raw_tokens, spans = self.raw_length_tokens, self.spans
        reached = self._input_length(raw_tokens)
        kept_tokens = raw_tokens - self._noise_tokens(raw_tokens)
        if reached != self.input_length_tokens or spans > min(self.noise_tokens, kept_tokens):
            raise DataError(
                f"input_length_tokens {self.input_length_tokens} cannot be made with noise_density "
                f"{self.noise_density} and mean_span_tokens {self.mean_span_tokens}: choose a "
                "longer input, a lower density, or longer spans"
            )

    @property
    def raw_length_tokens(self) -> int:
        """Length of the windows: the longest whose input is not longer than wanted."""
        low, high = 2, 4
        while self._input_length(high) <= self.input_length_tokens:
            low, high = high, 2 * high
        # The input never gets shorter with the window and grows by at most one token with it.
        while high - low > 1:
            middle = (low + high) // 2
            if self._input_length(middle) <= self.input_length_tokens:
                low = middle
            else:
                high = middle
        return low

    @property
    def noise_tokens(self) -> int:
        """Tokens of a window that are asked for."""
        return self._noise_tokens(self.raw_length_tokens)

    @property
    def spans(self) -> int:
        """Spans in a window, so many sentinels are needed."""
        return self._spans(self.raw_length_tokens)

    @property
    def target_length_tokens(self) -> int:
        """Length of the targets, their end-of-sequence id included."""
        return self.noise_tokens + self.spans + 1

    def _noise_tokens(self, raw_tokens: int) -> int:
        return min(max(round(raw_tokens * self.noise_density), 1), raw_tokens - 1)

    def _spans(self, raw_tokens: int) -> int:
        return max(round(self._noise_tokens(raw_tokens) / self.mean_span_tokens), 1)

    def _input_length(self, raw_tokens: int) -> int:
        return raw_tokens - self._noise_tokens(raw_tokens) + self._spans(raw_tokens) + 1

    def check_sentinels(self, count: int) -> None:
        """Makes sure that every span of a window gets a sentinel of its own.

        Args:
            count: Sentinels that the tokenizer has.

        Raises:
            DataError: If they are too few.
        """
        if count < self.spans:
            raise DataError(
                f"the tokenizer has {count} sentinels, but inputs of {self.input_length_tokens} "
                f"tokens at noise_density {self.noise_density} and mean_span_tokens "
                f"{self.mean_span_tokens} need {self.spans}: train a tokenizer with at least "
                f"{self.spans} sentinels, or choose shorter inputs or longer spans"
            )

    def corrupt(
        self,
        windows: npt.NDArray[np.integer],
        sample_indices: npt.ArrayLike,
        *,
        seed: int,
        vocab: SpecialTokens,
    ) -> tuple[IntegerArray, IntegerArray]:
        """Corrupts windows; each row depends on its window, its number and the seed only.

        A window begins with kept tokens and ends with a corrupted span, as in the source; where
        spans are cut is uniform over all ways to cut.

        Args:
            windows: [n, raw_length_tokens] ids.
            sample_indices: [n] numbers of the samples.
            seed: Chooses the spans.
            vocab: Sentinels and the end-of-sequence id.

        Returns:
            Inputs, int64 [n, input_length_tokens], and labels, int64 [n, target_length_tokens].

        Raises:
            DataError: If the sentinels are too few or the seed is out of range.
        """
        self.check_sentinels(vocab.sentinel_count)
        raw_tokens, noise_tokens, spans = self.raw_length_tokens, self.noise_tokens, self.spans
        num_rows = len(windows)
        assert windows.shape == (num_rows, raw_tokens), windows.shape
        samples = np.asarray(sample_indices)
        corrupted_lengths = _random_lengths(
            noise_tokens, spans, derive_keys(seed, _PURPOSE_CORRUPTED_1, samples)
        )
        kept_lengths = _random_lengths(
            raw_tokens - noise_tokens, spans, derive_keys(seed, _PURPOSE_KEPT_1, samples)
        )
        lengths = np.stack([kept_lengths, corrupted_lengths], axis=-1)
        alternating = np.tile(np.array([False, True]), num_rows * spans)
        corrupted = np.repeat(alternating, lengths.ravel()).reshape(num_rows, raw_tokens)
        sentinels = vocab.sentinel_ids(spans)
        number = np.arange(spans)
        inputs = _interleave(
            windows[~corrupted],
            sentinels,
            # The sentinel stands behind the kept tokens of its pair.
            np.cumsum(kept_lengths, axis=1) + number,
            self.input_length_tokens,
            vocab.eos_token_id,
        )
        labels = _interleave(
            windows[corrupted],
            sentinels,
            # The sentinel stands before the corrupted tokens of its pair.
            np.cumsum(corrupted_lengths, axis=1) - corrupted_lengths + number,
            self.target_length_tokens,
            vocab.eos_token_id,
        )
        return inputs, labels


def _random_lengths(total: int, parts: int, keys: KeyArray) -> IntegerArray:
    """Cuts `total` into `parts` positive lengths, for each key [n] uniformly: int64 [n, parts].

    The cuts are the first places of a random permutation of all places, so they are distinct
    without drawing for every place.
    """
    num_rows = len(keys)
    bounds = np.zeros((num_rows, parts + 1), dtype=np.int64)
    bounds[:, -1] = total
    if parts > 1:
        bounds[:, 1:-1] = permute(np.arange(parts - 1)[None, :], total - 1, keys[:, None]) + 1
        bounds[:, 1:-1].sort(axis=1)
    return np.diff(bounds, axis=1)


def _interleave(
    tokens: npt.NDArray[np.integer],
    sentinels: IntegerArray,
    sentinel_positions: IntegerArray,
    length: int,
    eos_token_id: int,
) -> IntegerArray:
    """Rows with sentinels at their positions, the end at the end, tokens in order elsewhere."""
    num_rows = len(sentinel_positions)
    is_text = np.ones((num_rows, length), dtype=np.bool_)
    is_text[:, -1] = False
    np.put_along_axis(is_text, sentinel_positions, False, axis=1)
    rows = np.empty((num_rows, length), dtype=np.int64)
    rows[is_text] = tokens
    np.put_along_axis(rows, sentinel_positions, sentinels[None, :], axis=1)
    rows[:, -1] = eos_token_id
    return rows
