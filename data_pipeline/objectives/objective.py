"""What an objective is: a pure function from windows of token ids to samples."""

from __future__ import annotations

from typing import Protocol

from data_pipeline.objectives.batch import Batch, SpecialTokens, Windows
from data_pipeline.objectives.outline import SampleOutline
from data_pipeline.permutation import IntegerArray, KeyArray


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

    def outline(
        self, lengths: IntegerArray, sample_keys: KeyArray, vocab: SpecialTokens
    ) -> SampleOutline | None:
        """Says which token of its window stands where in a sample, before any is read.

        Args:
            lengths: int64 [n] lengths of the windows.
            sample_keys: As of `make`, which makes the samples that are outlined here.
            vocab: As of `make`.

        Returns:
            None where that depends on the tokens.
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
