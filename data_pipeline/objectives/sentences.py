"""Where sentences end, as far as token ids tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.objectives.batch import BoolArray, Windows, behind
from data_pipeline.permutation import IntegerArray

if TYPE_CHECKING:
    from data_pipeline.tokenization.tokenizer import DocumentTokenizer

# Full stops, exclamation and question marks: Latin, ideographic, full-width and half-width.
_ENDS = tuple(".!?…。！？｡．")
# Quotes and brackets may close behind the mark that ends a sentence.
_CLOSING = " \"')]}»”’」』）】》〉］｝"


def sentence_end_table(tokenizer: DocumentTokenizer) -> BoolArray:
    """Which ids end a sentence: [vocab_size].

    A piece does if it holds a line end or ends, quotes and brackets aside, in a full stop,
    exclamation or question mark, ideographic ones included; so does the end of a document. A mark
    that the tokenizer spells in bytes is not seen, other than the line end.
    """
    table = np.zeros(tokenizer.vocab_size, dtype=np.bool_)
    for piece in range(tokenizer.piece_count):
        text = tokenizer.decode([piece])
        table[piece] = "\n" in text or text.rstrip(_CLOSING).endswith(_ENDS)
    table[tokenizer.eos_token_id] = True
    return table


class Sentences:
    """The sentences of windows, flattened: those of row 0 first, in order.

    A sentence ends behind the last of neighbouring ends ("?!" ends one sentence), where its
    document ends, or when it has `longest_tokens`.

    Attributes:
        of_token: int64 [tokens] sentence of each token, padding left out.
        starts: int64 [sentences] first token of each, counted without padding.
        lengths: int64 [sentences] tokens of each.
        documents: int64 [sentences] document of each, counted through all rows. Without segment
            ids, a row is one document.
        rows: int64 [sentences] row of each.
    """

    def __init__(self, windows: Windows, ends: BoolArray, longest_tokens: int) -> None:
        """Finds them.

        Args:
            windows: n rows.
            ends: [vocab_size] which ids end a sentence.
            longest_tokens: Where longer sentences are cut.
        """
        is_token = ~behind(windows.lengths, windows.tokens.shape[1])
        self.tokens = windows.tokens[is_token]
        num_tokens = len(self.tokens)
        row = np.repeat(np.arange(len(windows.lengths)), windows.lengths)
        segment = np.zeros_like(row)
        if windows.segment_ids is not None:
            segment = windows.segment_ids[is_token].astype(np.int64)
        new_document = np.ones(num_tokens, dtype=np.bool_)
        new_document[1:] = (row[1:] != row[:-1]) | (segment[1:] != segment[:-1])
        is_end = ends[self.tokens]
        begins = new_document.copy()
        begins[1:] |= is_end[:-1] & ~is_end[1:]
        first = np.flatnonzero(begins)
        lengths = np.diff(first, append=num_tokens)
        within = np.arange(num_tokens) - np.repeat(first, lengths)
        begins |= within % longest_tokens == 0
        self.starts = np.flatnonzero(begins)
        self.lengths: IntegerArray = np.diff(self.starts, append=num_tokens)
        self.of_token: IntegerArray = np.cumsum(begins) - 1
        self.documents: IntegerArray = (np.cumsum(new_document) - 1)[self.starts]
        self.rows: IntegerArray = row[self.starts]
