"""What objectives read and what they make: windows of token ids in, batches for the model out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from data_pipeline.permutation import IntegerArray, KeyArray

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
    """

    input_ids: TokenArray
    labels: TokenArray
    input_lengths: LengthArray | None = None
    label_lengths: LengthArray | None = None
    input_segment_ids: SegmentArray | None = None

    def masked_labels(self, ignored: int = -100) -> IntegerArray:
        """Labels with `ignored` in place of padding, int64 [samples, target length]."""
        labels = self.labels.astype(np.int64)
        if self.label_lengths is not None:
            labels[behind(self.label_lengths, labels.shape[1])] = ignored
        return labels


class Objective(Protocol):
    """Makes samples out of windows.

    Each row of a batch is a pure function of its tokens, its length, its segments and its key: it
    depends neither on the rows beside it nor on their order, their number, or the stored type.
    """

    @property
    def is_decoder_only(self) -> bool:
        """Whether the labels are the inputs, to be shifted by the model."""
        ...

    @property
    def window_tokens(self) -> int:
        """Tokens of the windows it wants; rows may be shorter."""
        ...

    @property
    def input_length_tokens(self) -> int:
        """The longest input that can occur, its end-of-sequence id included."""
        ...

    @property
    def target_length_tokens(self) -> int:
        """The longest target that can occur, its end-of-sequence id included."""
        ...

    def check_vocabulary(self, vocab: SpecialTokens) -> None:
        """Makes sure that the vocabulary has what the objective needs.

        Raises:
            DataError: If it has not, with what to do about it.
        """
        ...

    def make(self, windows: Windows, sample_keys: KeyArray, vocab: SpecialTokens) -> Batch:
        """Makes samples.

        Args:
            windows: n rows of at most `window_tokens` tokens.
            sample_keys: uint64 [n], one random number a sample, from which everything is drawn.
            vocab: A vocabulary that passed `check_vocabulary`.

        Returns:
            n samples, as long as the longest of them.
        """
        ...


def full_or_lengths(lengths: IntegerArray) -> LengthArray | None:
    """The lengths of a batch's rows as `Batch` has them: None where all are equal."""
    if len(lengths) == 0 or lengths.min() == lengths.max():
        return None
    return lengths.astype(np.int32)


def behind(lengths: npt.NDArray[np.integer], width: int) -> BoolArray:
    """Which columns lie behind the end of their row: [rows, width] for lengths [rows]."""
    outside: BoolArray = np.arange(width) >= lengths[:, None]
    return outside
