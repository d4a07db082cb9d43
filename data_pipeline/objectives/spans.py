"""Replaces spans of many rows by sentinels at once: the machine behind several objectives."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from data_pipeline.objectives.batch import (
    Batch,
    SegmentArray,
    SpecialTokens,
    TokenArray,
    Windows,
    behind,
    full_or_lengths,
)
from data_pipeline.objectives.draws import derive, random_lengths
from data_pipeline.objectives.outline import RowOutline, SampleOutline
from data_pipeline.permutation import IntegerArray, KeyArray

# A new version of the spans must get new numbers, so that they are other spans.
_PURPOSE_CORRUPTED_1 = 0x5C01
_PURPOSE_KEPT_1 = 0x5C02


def noise_tokens(lengths: IntegerArray, density: float | np.ndarray) -> IntegerArray:
    """Tokens to ask for: the share `density`, but at least one, and of two or more not all."""
    noise = np.rint(lengths * density).astype(np.int64)
    noise = np.clip(noise, 1, np.maximum(lengths - 1, 1))
    return np.minimum(noise, lengths)


def num_spans(
    lengths: IntegerArray, noise: IntegerArray, mean_tokens: float | np.ndarray
) -> IntegerArray:
    """Spans to cut `noise` into: of `mean_tokens` each, none empty, kept text before each.

    The one exception is a row of a single token, which is asked for as a whole.
    """
    spans = np.maximum(np.rint(noise / mean_tokens).astype(np.int64), 1)
    spans = np.minimum(spans, np.minimum(noise, lengths - noise))
    return np.where(lengths == 1, 1, spans)


def outline_spans(
    lengths: IntegerArray,
    noise: IntegerArray,
    spans: IntegerArray,
    keys: KeyArray,
    prefix_ids: IntegerArray | None = None,
) -> SampleOutline:
    """Where random spans of windows go: sentinels in their place, and they behind these in targets.

    An input begins with kept tokens and ends with a corrupted span, as in T5; where spans are cut
    is uniform over all ways to cut.

    Args:
        lengths: int64 [n] lengths of the windows.
        noise: int64 [n] tokens to ask for, from `noise_tokens`.
        spans: int64 [n] spans to cut them into, from `num_spans`.
        keys: uint64 [n] keys of the samples.
        prefix_ids: int64 [n] id to put before each input, or None for none.
    """
    num_rows = len(lengths)
    cut = random_lengths(
        np.concatenate([lengths - noise, noise]),
        np.concatenate([spans, spans]),
        np.concatenate([derive(keys, _PURPOSE_KEPT_1), derive(keys, _PURPOSE_CORRUPTED_1)]),
    )
    kept, corrupted = cut[:num_rows], cut[num_rows:]
    exists = (np.arange(cut.shape[1]) < spans[:, None]).astype(np.int64)
    number = np.cumsum(exists, axis=1) - exists
    kept_ends, corrupted_ends = np.cumsum(kept, axis=1), np.cumsum(corrupted, axis=1)
    num_prefix = 0 if prefix_ids is None else 1
    last = np.maximum(lengths - 1, 0)
    # Input j of a row is made of its kept tokens and the place of its sentinel, which reads the
    # first corrupted token for now: so segment ids of sentinels come out right.
    inputs = RowOutline(
        sources=corrupted_ends - corrupted - number - num_prefix,
        runs=kept + exists,
        sentinels=kept_ends + number + num_prefix,
        lengths=lengths - noise + spans + 1 + num_prefix,
        end_sources=last,
        first_ids=prefix_ids,
    )
    inputs.runs[:, 0] += num_prefix
    # A target begins with the place of its sentinel, followed by the corrupted tokens.
    targets = RowOutline(
        sources=kept_ends - 1 - number,
        runs=corrupted + exists,
        sentinels=corrupted_ends - corrupted + number,
        lengths=noise + spans + 1,
        end_sources=last,
    )
    return SampleOutline(inputs, targets)


def corrupt_spans(windows: Windows, outline: SampleOutline, vocab: SpecialTokens) -> Batch:
    """Replaces spans by sentinels and asks for them.

    Args:
        windows: n rows.
        outline: From `outline_spans` for their lengths; not to be used again.
        vocab: Sentinels, end and padding.
    """
    inputs, targets = _Rows(outline.inputs), _Rows(outline.labels)
    index = inputs.index(windows.tokens.shape[1])
    input_ids = inputs.tokens(windows.tokens, index, vocab)
    segments = None
    if windows.segment_ids is not None:
        segments = inputs.segments(windows.segment_ids, index)
    return Batch(
        input_ids=input_ids,
        labels=targets.tokens(windows.tokens, targets.index(windows.tokens.shape[1]), vocab),
        input_lengths=full_or_lengths(inputs.lengths),
        label_lengths=full_or_lengths(targets.lengths),
        input_segment_ids=segments,
    )


def _places(count: int) -> IntegerArray:
    """0, 1, 2, …, not to be written to: int64 [count]."""
    return _power_of_two_places((count - 1).bit_length())[:count]


@lru_cache(maxsize=32)
def _power_of_two_places(exponent: int) -> IntegerArray:
    # Kept from call to call: large temporary arrays cost page faults, four times as dear as work.
    places = np.arange(2**exponent)
    places.flags.writeable = False
    return places


class _Rows:
    """Rows made of runs of a window, with a sentinel in each run and an end behind the last."""

    def __init__(self, outline: RowOutline) -> None:
        self.lengths, self.width = outline.lengths, outline.width
        self._outline = outline
        # Those of spans that a row does not have are written where its end is written after them.
        self._sentinels = np.minimum(outline.sentinels, self.lengths[:, None] - 1)
        self._starts = np.arange(len(self.lengths)) * self.width

    def index(self, window_width: int) -> IntegerArray:
        """Where each place reads from, in the flattened windows; int64 [n * width]."""
        runs = self._outline.runs
        # End and padding are overwritten later, so whatever they read is right.
        runs[:, -1] += self.width - runs.sum(axis=1)
        shift = np.arange(len(runs))[:, None] * (window_width - self.width)
        index = np.repeat((self._outline.sources + shift).ravel(), runs.ravel())
        index += _places(len(index))
        return index

    def tokens(self, windows: TokenArray, index: IntegerArray, vocab: SpecialTokens) -> TokenArray:
        """The rows, in the type of the windows."""
        flat = windows.ravel().take(index, mode="clip")
        sentinels = vocab.sentinel_ids(self._sentinels.shape[1]).astype(windows.dtype)
        flat[self._starts[:, None] + self._sentinels] = sentinels
        flat[self._starts + self.lengths - 1] = vocab.eos_token_id
        rows: TokenArray = flat.reshape(len(self.lengths), self.width)
        if full_or_lengths(self.lengths) is not None:
            rows[behind(self.lengths, self.width)] = vocab.pad_token_id
        if self._outline.first_ids is not None:
            rows[:, 0] = self._outline.first_ids
        return rows

    def segments(self, segment_ids: SegmentArray, index: IntegerArray) -> SegmentArray:
        """The document of each place; a sentinel belongs to that in which its span begins.

        A prefix belongs to the first document, the end to the last.
        """
        rows = segment_ids.ravel().take(index, mode="clip")
        rows = rows.reshape(len(self.lengths), self.width)
        if self._outline.first_ids is not None:
            rows[:, 0] = segment_ids[:, 0]
        every_row = np.arange(len(rows))
        rows[every_row, self.lengths - 1] = segment_ids[every_row, self._outline.end_sources]
        rows[behind(self.lengths, self.width)] = 0
        return rows
