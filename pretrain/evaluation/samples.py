"""The held-out samples of one data set under one objective, and what counting says of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.objectives.batch import Batch
from data_pipeline.objectives.ul2 import DENOISERS, MixtureOfDenoisers
from data_pipeline.permutation import IntegerArray
from data_pipeline.reading.stream import PretrainingStream
from data_pipeline.reading.unigram import UnigramBaseline
from pretrain.errors import ConfigError

_SAMPLES_AT_A_TIME = 64


class Counts(NamedTuple):
    """Of single samples; every array is [samples].

    Sums of these are exact whatever their order, so they do not depend on who counted.
    """

    targets: IntegerArray
    """Target tokens."""
    text: IntegerArray
    """Of these, tokens of text: no sentinels, no end-of-sequence, whose place the masks give
    away."""
    text_bytes: IntegerArray
    """UTF-8 bytes of that text."""
    unigram_nats: npt.NDArray[np.float64]
    """What the targets cost where only their frequencies are known."""
    unigram_text_nats: npt.NDArray[np.float64]
    """What the text costs where only the frequencies of text are known."""


class HeldoutSamples(NamedTuple):
    """The first samples of a held-out data set under an objective."""

    stream: PretrainingStream
    """Makes them."""
    counts: Counts
    """What is known of them without a model."""
    denoisers: npt.NDArray[np.str_]
    """[samples] which of UL2's denoisers made each; empty words for other objectives."""

    @property
    def size(self) -> int:
        """How many samples there are."""
        return len(self.denoisers)


def count_samples(
    stream: PretrainingStream,
    *,
    samples: int,
    baseline: UnigramBaseline,
    text_bytes: IntegerArray,
    read: Callable[[PretrainingStream, IntegerArray], Batch] = PretrainingStream.batch,
) -> HeldoutSamples:
    """Choose the first samples of a stream, and count.

    Args:
        stream: The held-out data set under the objective.
        samples: At most so many, and no window twice.
        baseline: Frequencies of the training targets under the objective.
        text_bytes: [vocab_size] bytes of text that each id stands for.
        read: Reads samples by their numbers, with whole labels.

    Raises:
        ConfigError: If nothing of the samples is text, so that there is nothing to measure.
        DataError: If the data are damaged.
    """
    size = min(samples, *stream.samples_per_epoch.values())
    parts = []
    for first in range(0, size, _SAMPLES_AT_A_TIME):
        indices = np.arange(first, min(size, first + _SAMPLES_AT_A_TIME), dtype=np.int64)
        labels = read(stream, indices).masked_labels()
        parts.append(_count(labels, baseline, text_bytes))
    counts = joined(parts)
    if not counts.text_bytes.sum():
        raise ConfigError(
            f"evaluation.samples {samples}: the targets of held-out set "
            f"{', '.join(stream.manifests)} hold no text; take more samples or another data set"
        )
    return HeldoutSamples(stream, counts, _denoisers(stream, size))


def joined(parts: Sequence[Counts]) -> Counts:
    """The samples of several counts as one."""
    return Counts(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def metrics(parts: Sequence[HeldoutSamples], nats: npt.NDArray[np.float64]) -> dict[str, float]:
    """All that is stated of samples that count together.

    Args:
        parts: The samples, of one objective.
        nats: [samples, 2] as of `losses`, part by part.

    Returns:
        `losses`, and for each of UL2's denoisers `denoiser/DENOISER/loss` and `.../text_loss`.
    """
    counts = joined([part.counts for part in parts])
    denoisers = np.concatenate([part.denoisers for part in parts])
    found = losses(counts, nats)
    for name in sorted(set(denoisers.tolist()) - {""}):
        mask = denoisers == name
        of_one = losses(Counts(*(column[mask] for column in counts)), nats[mask])
        for key in ("loss", "text_loss"):
            found[f"denoiser/{name}/{key}"] = of_one[key]
    return found


def losses(counts: Counts, nats: npt.NDArray[np.float64]) -> dict[str, float]:
    """What a model makes of samples, beside what frequencies alone would.

    Args:
        counts: Of the samples.
        nats: [samples, 2] what the model's answers cost: all targets, and those that are text.

    Returns:
        `loss` and `unigram_loss`, nats a target token; `text_loss` and `unigram_text_loss`, nats a
        token of text; `bits_per_byte` of text, which can be compared between tokenizers.
    """
    targets, text = int(counts.targets.sum()), int(counts.text.sum())
    # Rounded once: no order of samples, sets or ranks gives other bits.
    text_nats = math.fsum(nats[:, 1])
    return {
        "loss": math.fsum(nats[:, 0]) / targets,
        "text_loss": text_nats / text,
        "unigram_loss": math.fsum(counts.unigram_nats) / targets,
        "unigram_text_loss": math.fsum(counts.unigram_text_nats) / text,
        "bits_per_byte": text_nats / math.log(2) / int(counts.text_bytes.sum()),
    }


def _count(labels: IntegerArray, baseline: UnigramBaseline, text_bytes: IntegerArray) -> Counts:
    """Counts of labels [samples, target length], negative where there is none."""
    counted = labels >= 0
    is_text = baseline.vocab.is_text(labels)
    ids = np.where(counted, labels, 0)
    return Counts(
        targets=counted.sum(axis=1),
        text=is_text.sum(axis=1),
        text_bytes=np.where(is_text, text_bytes[ids], 0).sum(axis=1),
        unigram_nats=np.where(counted, baseline.nats[ids], 0.0).sum(axis=1),
        unigram_text_nats=np.where(is_text, baseline.text_nats[ids], 0.0).sum(axis=1),
    )


def _denoisers(stream: PretrainingStream, size: int) -> npt.NDArray[np.str_]:
    """Names that a metric can have, such as `x_span64_noise15`, of the first samples."""
    objective = stream.settings.objective
    if not isinstance(objective, MixtureOfDenoisers):
        return np.full(size, "", dtype=np.str_)
    names = [
        f"{one.mode.lower()}{f'_span{one.mean_span_tokens:g}' if one.mode != 'S' else ''}"
        f"_noise{round(one.noise_density * 100)}"
        for one in DENOISERS
    ]
    drawn = objective.denoisers(stream.locate(np.arange(size, dtype=np.int64)).keys)
    return np.array(names, dtype=np.str_)[drawn]
