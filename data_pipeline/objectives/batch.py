"""What objectives read and what they make: windows of token ids in, batches for the model out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.permutation import IntegerArray

BoolArray = npt.NDArray[np.bool_]
# Ids in the width they are stored in: two bytes or four.
TokenArray = npt.NDArray[Any]
LengthArray = npt.NDArray[np.int32]
SegmentArray = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class SpecialTokens:
    """The ids an objective needs.

    Attributes:
        vocab_size: All ids; sentinel 0 is `vocab_size - 1`, sentinel 1 the one below it.
        sentinel_count: How many sentinels there are.
        eos_token_id: Closes inputs and targets, and stands behind every document.
        pad_token_id: Stands behind the end of rows that are shorter than their batch.
        sentence_end: [vocab_size] True for ids that end a sentence, from `sentence_end_table`;
            only gap sentences need it.
    """

    vocab_size: int
    sentinel_count: int
    eos_token_id: int
    pad_token_id: int
    sentence_end: BoolArray | None = field(default=None, compare=False, repr=False)

    def sentinel_ids(self, count: int) -> IntegerArray:
        """Ids of the first `count` sentinels, int64 [count]."""
        return self.vocab_size - 1 - np.arange(count, dtype=np.int64)

    def is_text(self, ids: npt.NDArray[np.integer]) -> BoolArray:
        """Which ids are no sentinel, end, or padding (nor left out by being negative).

        Args:
            ids: Of any shape.

        Returns:
            The same shape.
        """
        num_pieces = self.vocab_size - self.sentinel_count
        is_text: BoolArray = (ids >= 0) & (ids < num_pieces) & (ids != self.eos_token_id)
        is_text &= ids != self.pad_token_id
        return is_text


@dataclass(frozen=True, eq=False)
class Windows:
    """Token ids as they stand in the data set.

    Attributes:
        tokens: [windows, window_tokens] ids in the stored type, padding behind a row's length.
        lengths: int64 [windows] tokens in each row.
        segment_ids: uint16 [windows, window_tokens] number of the document within its window from
            1 on, 0 behind the length; None where nobody asked.
    """

    tokens: TokenArray
    lengths: IntegerArray
    segment_ids: SegmentArray | None = None


@dataclass(frozen=True)
class SamplePart:
    """A part of samples, where several share each: equal pieces of inputs and of labels.

    Attributes:
        number: Which part, from 0.
        count: How many there are; 1 is the whole.
    """

    number: int = 0
    count: int = 1

    def widths(self, columns: int) -> tuple[int, ...]:
        """Columns of every part, as equal as can be, longer ones first."""
        least, longer = divmod(columns, self.count)
        return tuple(least + (number < longer) for number in range(self.count))

    def columns(self, columns: int) -> slice:
        """This part's columns of so many."""
        widths = self.widths(columns)
        start = sum(widths[: self.number])
        return slice(start, start + widths[self.number])


WHOLE = SamplePart()


@dataclass(frozen=True)
class BatchPart:
    """Which part of whole samples a batch holds.

    Attributes:
        part: Which.
        input_columns: Length of the whole inputs, at least one for each part.
        label_columns: Length of the whole labels.
        is_sound: Whether nothing was damaged; what is damaged is filled with any ids.
    """

    part: SamplePart
    input_columns: int
    label_columns: int
    is_sound: bool


@dataclass(frozen=True, eq=False)
class Batch:
    """What the model gets, in the stored type; the device widens it.

    Attributes:
        input_ids: [samples, input length], padding behind a row's length.
        labels: [samples, target length], padding behind a row's length. The same array as
            `input_ids` for decoders alone, which shift it themselves.
        input_lengths: int32 [samples], or None where all rows are full.
        label_lengths: int32 [samples], or None where all rows are full.
        input_segment_ids: uint16 [samples, input length] document of each input token, 0 for
            padding; None where the windows had none.
        part: Which columns of whole samples all but the lengths are, which are those of the whole;
            None for whole samples.
    """

    input_ids: TokenArray
    labels: TokenArray
    input_lengths: LengthArray | None = None
    label_lengths: LengthArray | None = None
    input_segment_ids: SegmentArray | None = None
    part: BatchPart | None = None

    def masked_labels(self, ignored: int = -100) -> IntegerArray:
        """Labels with `ignored` in place of padding, int64 [samples, target length]."""
        labels = self.labels.astype(np.int64)
        if self.label_lengths is not None:
            labels[behind(self.label_lengths, labels.shape[1])] = ignored
        return labels


def full_or_lengths(lengths: IntegerArray) -> LengthArray | None:
    """The lengths of a batch's rows as `Batch` has them: None where all are equal."""
    if len(lengths) == 0 or lengths.min() == lengths.max():
        return None
    return lengths.astype(np.int32)


def behind(lengths: npt.NDArray[np.integer], width: int) -> BoolArray:
    """Which columns lie behind the end of their row: [rows, width] for lengths [rows]."""
    outside: BoolArray = np.arange(width) >= lengths[:, None]
    return outside
