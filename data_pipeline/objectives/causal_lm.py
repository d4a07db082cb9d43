"""Causal language modelling: every token is asked for, given those before it.

Source: Bengio et al., "A neural probabilistic language model", 2003. Windows are cut from a stream
of documents that each end in an end-of-sequence id, as in Brown et al., "Language models are
few-shot learners", 2020; a window that breaks off within a document gets no end.
"""

from __future__ import annotations

from dataclasses import dataclass

from data_pipeline.errors import DataError
from data_pipeline.objectives.batch import Batch, SpecialTokens, Windows, full_or_lengths
from data_pipeline.permutation import IntegerArray, KeyArray


@dataclass(frozen=True)
class CausalLanguageModel:
    """Windows as they are, for decoders alone; the model shifts the labels.

    Attributes:
        input_length_tokens: Length of the windows.
    """

    input_length_tokens: int

    is_decoder_only = True

    def __post_init__(self) -> None:
        if self.input_length_tokens < 2:
            raise DataError(
                f"input_length_tokens must be at least 2, not {self.input_length_tokens}"
            )

    @property
    def window_tokens(self) -> int:
        """Length of the windows."""
        return self.input_length_tokens

    @property
    def target_length_tokens(self) -> int:
        """Length of the labels, which are the inputs."""
        return self.input_length_tokens

    def check_vocabulary(self, vocab: SpecialTokens) -> None:
        """Needs nothing."""

    def outline(self, lengths: IntegerArray, sample_keys: KeyArray, vocab: SpecialTokens) -> None:
        """Hands windows on as they are; see `Objective.outline`."""

    def make(self, windows: Windows, sample_keys: KeyArray, vocab: SpecialTokens) -> Batch:
        """Hands the windows on; see `Objective.make`."""
        assert windows.lengths.max(initial=0) <= self.window_tokens
        longest = int(windows.lengths.max(initial=0))
        tokens = windows.tokens[:, :longest]
        lengths = full_or_lengths(windows.lengths)
        segments = windows.segment_ids
        return Batch(
            input_ids=tokens,
            labels=tokens,
            input_lengths=lengths,
            label_lengths=lengths,
            input_segment_ids=None if segments is None else segments[:, :longest],
        )
