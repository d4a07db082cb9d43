"""The loss of a model that only knows how often each target token occurs: what to beat."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

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

    @cached_property
    def nats(self) -> npt.NDArray[np.float64]:
        """Negative log-likelihood of each id, float64 [vocab_size]."""
        return _nats(self.counts + 1)

    @cached_property
    def text_nats(self) -> npt.NDArray[np.float64]:
        """The same where only text can come; infinite for sentinels, end and padding.

        That makes it the stronger baseline: it need not spend probability on sentinels.
        """
        is_text = self.vocab.is_text(np.arange(self.vocab.vocab_size))
        return _nats(np.where(is_text, self.counts + 1, 0))


def _nats(counts: IntegerArray) -> npt.NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        nats: npt.NDArray[np.float64] = np.log(counts.sum()) - np.log(counts)
    return nats


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
