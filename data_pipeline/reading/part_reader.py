"""Parts of samples, where several processes share each: each reads what its part is made of.

An objective that can tell where the tokens of a window go before it knows them has each process
read about its share of the window: the tokens of its piece of the input, and those of its piece of
the labels, which are mostly the same. Where the objective must see the whole window, the whole is
read and the part kept.

Nobody here can go around damage, which another process may not have seen: batches only tell of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_pipeline.errors import DamageError, DataError
from data_pipeline.objectives.batch import (
    Batch,
    BatchPart,
    LengthArray,
    SegmentArray,
    SpecialTokens,
    TokenArray,
    Windows,
    full_or_lengths,
)
from data_pipeline.objectives.outline import SampleOutline
from data_pipeline.permutation import IntegerArray
from data_pipeline.reading.quarantine import Quarantine
from data_pipeline.reading.samples import Samples
from data_pipeline.reading.source import Source, StreamSettings


class _Ranges(NamedTuple):
    """What is read of each window: two ranges one behind the other, or one; each int64 [n, 2].

    Attributes:
        starts: First tokens within the window.
        lengths: Tokens; 0 in second place where one range has both.
        shifts: Token of the window that would stand at the beginning of the row, by range.
    """

    starts: IntegerArray
    lengths: IntegerArray
    shifts: IntegerArray

    @classmethod
    def covering(
        cls, first: tuple[IntegerArray, IntegerArray], second: tuple[IntegerArray, IntegerArray]
    ) -> _Ranges:
        """Cover two ranges a row, given as first token and behind the last; joined if they meet."""
        starts, stops = np.stack([first[0], second[0]], 1), np.stack([first[1], second[1]], 1)
        for own, other in ((0, 1), (1, 0)):
            empty = stops[:, own] <= starts[:, own]
            starts[empty, own] = stops[empty, own] = starts[empty, other]
        together = starts.max(axis=1) <= stops.min(axis=1)
        starts[together] = starts[together].min(axis=1, keepdims=True)
        lengths = stops - starts
        lengths[together, 0] = lengths[together].max(axis=1)
        lengths[together, 1] = 0
        shifts = starts.copy()
        shifts[~together, 1] -= lengths[~together, 0]
        return cls(starts, lengths, shifts)


class _Held(NamedTuple):
    """What was read of n windows.

    Attributes:
        tokens: [n, held] ids; any where there was damage.
        segments: uint16 [n, held] documents of the tokens within their window from 1, or None.
        is_sound: Whether there was no damage.
    """

    tokens: TokenArray
    segments: SegmentArray | None
    is_sound: bool


class PartReader:
    """Makes one part of samples."""

    def __init__(
        self,
        settings: StreamSettings,
        sources: Sequence[Source],
        quarantine: Quarantine,
        vocabulary: SpecialTokens,
    ) -> None:
        """Takes what a stream has.

        Args:
            settings: Of the stream; which part, among others.
            sources: Its data sets, in the order of the mixture.
            quarantine: What has been found damaged.
            vocabulary: The ids.
        """
        self._settings = settings
        self._part = settings.part
        self._sources = sources
        self._quarantine = quarantine
        self._vocabulary = vocabulary

    def make(self, samples: Samples) -> Batch:
        """Makes this part of samples.

        Raises:
            DataError: If data are damaged and may not be gone around.
        """
        objective = self._settings.objective
        outline = objective.outline(samples.lengths, samples.keys, self._vocabulary)
        return self._make_of_all(samples) if outline is None else self._make(samples, outline)

    def _make(self, samples: Samples, outline: SampleOutline) -> Batch:
        """Makes it of what it is made of alone."""
        vocab = self._vocabulary
        width, label_width = max(outline.inputs.width, self._part.count), outline.labels.width
        inputs = outline.inputs.columns(self._part.columns(width))
        labels = outline.labels.columns(self._part.columns(label_width))
        needed = inputs.ranges(samples.lengths), labels.ranges(samples.lengths)
        ranges = _Ranges.covering(*needed)
        held = self._read(samples, ranges)
        segments = None
        if held.segments is not None:
            ends = self._segments_of(samples, outline.inputs.end_sources)
            segments = inputs.segments(held.segments, ranges.shifts[:, 0], ends)
        return Batch(
            input_ids=inputs.ids(held.tokens, ranges.shifts[:, 0], vocab),
            labels=labels.ids(held.tokens, ranges.shifts[:, 1], vocab),
            input_lengths=_lengths(outline.inputs.lengths, width),
            label_lengths=full_or_lengths(outline.labels.lengths),
            input_segment_ids=segments,
            part=BatchPart(self._part, width, label_width, held.is_sound),
        )

    def _make_of_all(self, samples: Samples) -> Batch:
        """Makes it of the whole windows."""
        zero = np.zeros_like(samples.lengths)
        held = self._read(samples, _Ranges.covering((zero, samples.lengths), (zero, zero)))
        windows = Windows(held.tokens, samples.lengths, held.segments)
        whole = self._settings.objective.make(windows, samples.keys, self._vocabulary)
        columns, label_columns = whole.input_ids.shape[1], whole.labels.shape[1]
        width = max(columns, self._part.count)
        own, pad = self._part.columns(width), self._vocabulary.pad_token_id
        segments = whole.input_segment_ids
        if segments is not None:
            segments = _padded(segments, width, 0)[:, own].copy()
        lengths = whole.input_lengths
        if lengths is None:
            lengths = _lengths(np.full(len(samples.lengths), columns), width)
        return Batch(
            input_ids=_padded(whole.input_ids, width, pad)[:, own].copy(),
            labels=whole.labels[:, self._part.columns(label_columns)].copy(),
            input_lengths=lengths,
            label_lengths=whole.label_lengths,
            input_segment_ids=segments,
            part=BatchPart(self._part, width, label_columns, held.is_sound),
        )

    def _read(self, samples: Samples, ranges: _Ranges) -> _Held:
        shape = len(samples.lengths), max(1, int(ranges.lengths.sum(axis=1).max(initial=0)))
        # Zeros, so that an objective that looks at tokens finds ids even where there was damage.
        tokens = np.zeros(shape, dtype=self._sources[0].manifest.token_dtype)
        segments = None
        if self._settings.document_boundaries:
            segments = np.zeros(shape, dtype=np.uint16)
        is_sound = True
        for row in range(shape[0]):
            source = self._sources[int(samples.sources[row])]
            place = None if segments is None else segments[row]
            try:
                is_sound &= self._read_row(samples, row, source, ranges, tokens[row], place)
            except DamageError as error:
                self._quarantine.take(source.name, error)
                is_sound = False
                tokens[row] = 0
        if int(tokens.max()) >= self._vocabulary.vocab_size:
            raise DataError(
                f"the data hold id {tokens.max()}, but the vocabulary has "
                f"{self._vocabulary.vocab_size}: build the data sets again"
            )
        return _Held(tokens, segments, is_sound)

    def _read_row(
        self,
        samples: Samples,
        row: int,
        source: Source,
        ranges: _Ranges,
        tokens: TokenArray,
        segments: SegmentArray | None,
    ) -> bool:
        """Read the ranges of one window; False, and nothing read, where it is known as damaged."""
        shard, start = int(samples.shards[row]), int(samples.starts[row])
        file = source.manifest.shards[shard].file
        if self._quarantine.contains(source.name, file, start, int(samples.lengths[row])):
            return False
        done = 0
        for skipped, length in zip(
            ranges.starts[row].tolist(), ranges.lengths[row].tolist(), strict=True
        ):
            if not length:
                continue
            place = None if segments is None else segments[done : done + length]
            target = tokens[done : done + length].view(np.uint8).data
            source.reader.read(target, shard, start + skipped, place)
            if place is not None:
                documents = source.reader.shard(shard)
                first = documents.document_at(start)
                place += np.uint16((documents.document_at(start + skipped) - first) % 2**16)
            done += length
        return True

    def _segments_of(self, samples: Samples, tokens: IntegerArray) -> IntegerArray:
        """Documents of one token of each window, counted within the window from 1."""
        found = np.zeros(len(tokens), dtype=np.int64)
        for row, token in enumerate(tokens.tolist()):
            source = self._sources[int(samples.sources[row])]
            start = int(samples.starts[row])
            try:
                documents = source.reader.shard(int(samples.shards[row]))
            except DamageError:
                continue  # told of where tokens were read
            found[row] = documents.document_at(start + token) - documents.document_at(start) + 1
        return found


def _lengths(lengths: IntegerArray, width: int) -> LengthArray | None:
    """Lengths as batches have them, where rows may all be padded to a width."""
    if lengths.max(initial=0) < width:
        return lengths.astype(np.int32)
    return full_or_lengths(lengths)


def _padded(rows: TokenArray, width: int, filling: int) -> TokenArray:
    missing = max(0, width - rows.shape[1])
    return np.pad(rows, ((0, 0), (0, missing)), constant_values=filling) if missing else rows
