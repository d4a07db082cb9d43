"""Batches of a pretraining run: sample numbers in, corrupted windows out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from data_pipeline.manifest import Manifest
from data_pipeline.objective import SpanCorruption, SpecialTokens
from data_pipeline.permutation import IntegerArray
from data_pipeline.sample_order import SampleOrder
from data_pipeline.shard_reader import DatasetReader


@dataclass(frozen=True, eq=False)
class Seq2SeqBatch:
    """Inputs and labels of an encoder-decoder, without padding.

    Attributes:
        input_ids: int64 [samples, input length].
        labels: int64 [samples, target length].
    """

    input_ids: IntegerArray
    labels: IntegerArray


class PretrainingStream:
    """Samples of a data set under an objective: sample `i` is a pure function of its arguments.

    Attributes:
        manifest: The data set's manifest.
        objective: The objective.
        order: Which window each sample is.
        seed: Chooses order and spans.
    """

    def __init__(self, dataset: Path, objective: SpanCorruption, *, seed: int) -> None:
        """Opens a data set.

        Args:
            dataset: Folder with the manifest.
            objective: What is done to each window.
            seed: Chooses order and spans.

        Raises:
            DataError: If the manifest is missing or damaged, a shard is missing or cut off, the
                sentinels are too few, or no window fits.
        """
        self.manifest = Manifest.load(dataset)
        objective.check_sentinels(self.manifest.sentinel_count)
        self.objective = objective
        self.seed = seed
        self.order = SampleOrder(
            self.manifest, window_tokens=objective.raw_length_tokens, seed=seed
        )
        self._vocab = SpecialTokens.from_manifest(self.manifest)
        self._reader = DatasetReader(dataset, self.manifest)

    @property
    def samples_per_epoch(self) -> int:
        """Samples after which every window has been seen once."""
        return self.order.samples_per_epoch

    def windows(self, sample_indices: npt.ArrayLike) -> npt.NDArray[Any]:
        """The windows of samples before corruption.

        Args:
            sample_indices: [n] numbers of samples.

        Returns:
            [n, objective.raw_length_tokens] of the data set's id type.

        Raises:
            DataError: If the data is damaged or a number is negative.
        """
        _, shards, start_tokens = self.order.locate(sample_indices)
        return self._reader.read_windows(shards, start_tokens, self.order.window_tokens)

    def batch(self, sample_indices: npt.ArrayLike) -> Seq2SeqBatch:
        """Makes samples.

        Args:
            sample_indices: [n] numbers of samples, in any order.

        Returns:
            The samples in that order.

        Raises:
            DataError: If the data is damaged (naming shard and document) or a number is negative.
        """
        input_ids, labels = self.objective.corrupt(
            self.windows(sample_indices), sample_indices, seed=self.seed, vocab=self._vocab
        )
        return Seq2SeqBatch(input_ids, labels)

    def close(self) -> None:
        """Closes all files."""
        self._reader.close()
