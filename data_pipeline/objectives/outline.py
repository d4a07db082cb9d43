"""Samples before any token is read: which token of its window stands at which place of a row.

What is drawn for a sample follows from its key and its length alone. So whoever needs a few columns
of a sample finds out first which tokens of the window are there, and reads only those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data_pipeline.objectives.batch import SegmentArray, SpecialTokens, TokenArray
from data_pipeline.permutation import IntegerArray


@dataclass(frozen=True, eq=False)
class RowOutline:
    """Rows made of runs of their windows, with an end behind the last run.

    Attributes:
        sources: int64 [n, runs] how far behind its place in the row each run stands in the window;
            no token of a row stands in front of that of an earlier place.
        runs: int64 [n, runs] lengths of the runs, with the places that sentinels and `first_ids`
            take.
        sentinels: int64 [n, sentinels] places of sentinels; those from the end on are none.
        lengths: int64 [n] lengths of the rows.
        end_sources: int64 [n] token of the window to whose document the end belongs.
        first_ids: int64 [n] id at the first place, or None where it is a token.
    """

    sources: IntegerArray
    runs: IntegerArray
    sentinels: IntegerArray
    lengths: IntegerArray
    end_sources: IntegerArray
    first_ids: IntegerArray | None = None

    @property
    def width(self) -> int:
        """Length of the longest row, at least 1."""
        return int(self.lengths.max(initial=1))

    def columns(self, columns: slice) -> Columns:
        """Look at some columns of the rows."""
        start, stop = columns.start, columns.stop
        counts = np.clip(np.cumsum(self.runs, axis=1), start, stop)
        counts[:, 1:] -= counts[:, :-1].copy()
        counts[:, 0] -= start
        # End and padding are overwritten later, so whatever they read is right.
        counts[:, -1] += stop - start - counts.sum(axis=1)
        flat = np.repeat(self.sources.ravel(), counts.ravel())
        index = flat.reshape(len(self.lengths), stop - start) + np.arange(start, stop)
        return Columns(self, columns, index)


@dataclass(frozen=True, eq=False)
class Columns:
    """Some columns of rows.

    Attributes:
        rows: The rows.
        columns: Which.
        index: int64 [n, columns] token of the window that stands at each place; of any value where
            something else stands.
    """

    rows: RowOutline
    columns: slice
    index: IntegerArray

    def ranges(self, window_lengths: IntegerArray) -> tuple[IntegerArray, IntegerArray]:
        """Tokens of each window that are needed, as first and behind the last, int64 [n] each."""
        used = np.clip(self.rows.lengths - 1 - self.columns.start, 0, self.index.shape[1])
        starts, stops = np.zeros_like(used), np.zeros_like(used)
        (some,) = np.nonzero(used)
        if not len(some):
            return starts, stops
        starts[some] = np.clip(self.index[some, 0], 0, window_lengths[some])
        last = self.index[some, used[some] - 1]
        stops[some] = np.clip(last + 1, starts[some], window_lengths[some])
        return starts, stops

    def ids(self, tokens: TokenArray, shifts: IntegerArray, vocab: SpecialTokens) -> TokenArray:
        """Ids of the columns.

        Args:
            tokens: [n, held] what was read of each window.
            shifts: int64 [n] which token of its window the first in `tokens` is.
            vocab: Sentinels, end and padding.

        Returns:
            [n, columns] in the type of `tokens`.
        """
        ids = self._taken(tokens, shifts)
        places = np.arange(self.columns.start, self.columns.stop)
        ends = self.rows.lengths[:, None] - 1
        sentinels = self.rows.sentinels
        inside = (sentinels >= self.columns.start) & (sentinels < self.columns.stop)
        row, number = np.nonzero(inside & (sentinels < ends))
        ids[row, sentinels[row, number] - self.columns.start] = vocab.vocab_size - 1 - number
        if self.rows.first_ids is not None and self.columns.start == 0 and ids.size:
            ids[:, 0] = self.rows.first_ids
        ids[places == ends] = vocab.eos_token_id
        ids[places > ends] = vocab.pad_token_id
        return ids

    def segments(
        self, segments: SegmentArray, shifts: IntegerArray, end_segments: IntegerArray
    ) -> SegmentArray:
        """The document of each place; a sentinel belongs to that in which its span begins.

        Args:
            segments: uint16 [n, held] document of each token that was read.
            shifts: As of `ids`.
            end_segments: [n] document of each row's end.
        """
        found: SegmentArray = self._taken(segments, shifts)
        places = np.arange(self.columns.start, self.columns.stop)
        row, column = np.nonzero(places == self.rows.lengths[:, None] - 1)
        found[row, column] = end_segments[row]
        found[places > self.rows.lengths[:, None] - 1] = 0
        return found

    def _taken(self, values: TokenArray, shifts: IntegerArray) -> TokenArray:
        places = np.clip(self.index - shifts[:, None], 0, values.shape[1] - 1)
        return np.take_along_axis(values, places, axis=1)


class SampleOutline(NamedTuple):
    """Both rows of samples: every token of a window stands in one of them."""

    inputs: RowOutline
    labels: RowOutline
