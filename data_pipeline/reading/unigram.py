"""The loss of a model that only knows how often each target token occurs: what to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError
from data_pipeline.objectives.batch import SpecialTokens
from data_pipeline.permutation import IntegerArray
from data_pipeline.progress import Progress, ProgressCallback
from data_pipeline.reading.stream import PretrainingStream

_SAMPLES_AT_A_TIME = 64


@dataclass(frozen=True, eq=False)
class UnigramBaseline:
    """Frequencies of target tokens, with one added to each count so that none is impossible.

    Attributes:
        counts: int64 [vocab_size] how often each id was a target.
        vocab: Which ids are sentinels and the end.
    """

    counts: IntegerArray
    vocab: SpecialTokens

    def loss(self, labels: npt.ArrayLike) -> float:
        """Mean negative log-likelihood of all labels, in nats a token.

        Args:
            labels: Ids of any shape; negative ones are left out.

        Raises:
            DataError: If nothing is left to average.
        """
        ids = np.asarray(labels).ravel()
        return _mean_loss(self.counts, ids[ids >= 0])

    def text_loss(self, labels: npt.ArrayLike) -> float:
        """The same over text alone: without sentinels and ends, in labels and frequencies.

        That makes it the stronger baseline: it need not spend probability on sentinels.

        Raises:
            DataError: If nothing is left to average.
        """
        ids = np.asarray(labels).ravel()
        is_text = self.vocab.is_text(ids)
        num_pieces = self.vocab.vocab_size - self.vocab.sentinel_count
        counts = self.counts[:num_pieces].copy()
        # Neither counted nor possible: -1 and the one that is added make zero.
        counts[[self.vocab.eos_token_id, self.vocab.pad_token_id]] = -1
        return _mean_loss(counts, ids[is_text])


def _mean_loss(counts: IntegerArray, ids: npt.NDArray[np.integer]) -> float:
    if ids.size == 0:
        raise DataError("no labels to compute the unigram loss of: give at least one sample")
    smoothed = counts.astype(np.float64) + 1
    return float(np.log(smoothed.sum()) - np.log(smoothed[ids]).mean())


def target_unigram(
    stream: PretrainingStream, samples: int, progress: ProgressCallback | None = None
) -> UnigramBaseline:
    """Counts the target tokens of the first samples of a stream.

    Args:
        stream: The training stream, whose objective makes the targets.
        samples: How many of its samples to count, beginning with number 0.
        progress: Told of the samples counted.

    Raises:
        DataError: If `samples` is below 1 or the data is damaged.
    """
    if samples < 1:
        raise DataError(f"samples must be at least 1, not {samples}")
    vocab = stream.vocabulary
    counts = np.zeros(vocab.vocab_size, dtype=np.int64)
    for first in range(0, samples, _SAMPLES_AT_A_TIME):
        last = min(samples, first + _SAMPLES_AT_A_TIME)
        labels = stream.batch(np.arange(first, last)).masked_labels()
        counts += np.bincount(labels[labels >= 0], minlength=vocab.vocab_size)
        if progress is not None:
            progress(Progress("count target tokens", last, samples, "samples"))
    return UnigramBaseline(counts, vocab)
