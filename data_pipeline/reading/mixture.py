"""Mixing data sets: from the number of a sample to its source and its number there.

Proportions hold over every span, not just on average: a source's samples are spread as evenly as
the others allow. Which source a sample comes from, and how many of each came before it, is a few
divisions, so nothing is drawn, stored or replayed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError
from data_pipeline.permutation import IntegerArray

# Weights are kept as whole shares of this many; the pattern of sources repeats after it.
SHARES = 2**20


@dataclass(frozen=True)
class Stage:
    """Weights that hold from a sample on.

    Attributes:
        from_sample: First sample.
        weights: Weight of each source; sources left out have none. Only ratios matter.
    """

    from_sample: int
    weights: Mapping[str, float]


def temperature_weights(tokens: Mapping[str, int], temperature: float) -> dict[str, float]:
    """Weights by size: tokens ** (1 / temperature), 1 being proportional, more being flatter.

    Args:
        tokens: Tokens of each source.
        temperature: At least 1.

    Raises:
        DataError: If the temperature is out of range.

    Source: Arivazhagan et al., "Massively multilingual neural machine translation in the wild",
    2019, section 5.
    """
    if not temperature >= 1:
        raise DataError(f"temperature must be at least 1, not {temperature!r}")
    largest = max(tokens.values())
    return {name: (count / largest) ** (1 / temperature) for name, count in tokens.items()}


class Mixture:
    """Which source each sample comes from, and how manieth of that source it is."""

    def __init__(self, names: Sequence[str], stages: Sequence[Stage]) -> None:
        """Counts what each stage takes from each source.

        Args:
            names: The sources.
            stages: In order; the first from sample 0.

        Raises:
            DataError: If a stage names an unknown source, has no or a negative weight, or stages
                are out of order.
        """
        self.names = tuple(names)
        starts = [stage.from_sample for stage in stages]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise DataError(
                f"stages of the mixture begin at samples {starts}: the first must begin at 0 and "
                "each later than the one before"
            )
        self._starts = np.array(starts, dtype=np.int64)
        self._shares = [_whole_shares(self.names, stage.weights) for stage in stages]
        # [stages, sources] samples of each source before the stage.
        self._before = np.zeros((len(stages), len(self.names)), dtype=np.int64)
        for number in range(1, len(stages)):
            length = np.array([starts[number] - starts[number - 1]], dtype=np.int64)
            counts = _counts_before(self._shares[number - 1], length)[0]
            self._before[number] = self._before[number - 1] + counts

    def locate(self, sample_indices: npt.ArrayLike) -> tuple[IntegerArray, IntegerArray]:
        """Finds samples.

        Args:
            sample_indices: [n] numbers of samples, not negative.

        Returns:
            Positions of the sources in `names`, and the samples' numbers there, int64 [n] each.

        Raises:
            DataError: If a number is negative.
        """
        samples = np.asarray(sample_indices, dtype=np.int64)
        if samples.size and samples.min() < 0:
            raise DataError(f"sample {samples.min()} asked for: numbers begin at 0")
        stages = np.searchsorted(self._starts, samples, side="right") - 1
        sources, numbers = np.empty_like(samples), np.empty_like(samples)
        for stage in np.unique(stages).tolist():
            chosen = stages == stage
            since = samples[chosen] - self._starts[stage]
            before = _counts_before(self._shares[stage], since)
            # One more sample raises the count of exactly one source: the sample's own.
            raised = _counts_before(self._shares[stage], since + 1) > before
            source = raised.argmax(axis=1)
            rows = np.arange(len(source))
            sources[chosen] = source
            numbers[chosen] = before[rows, source] + self._before[stage][source]
        return sources, numbers

    def counts(self, sample_index: int) -> dict[str, int]:
        """Samples of each source among the first `sample_index` of the run."""
        stage = int(np.searchsorted(self._starts, sample_index, side="right")) - 1
        since = np.array([sample_index - self._starts[stage]], dtype=np.int64)
        counts = self._before[stage] + _counts_before(self._shares[stage], since)[0]
        return dict(zip(self.names, counts.tolist(), strict=True))


def _whole_shares(names: Sequence[str], weights: Mapping[str, float]) -> IntegerArray:
    """Whole numbers [sources] that sum to `SHARES` in the ratio of the weights."""
    for name, weight in weights.items():
        if name not in names:
            raise DataError(
                f"the mixture weighs source {name!r}, which is none of {', '.join(names)}"
            )
        if not 0 <= weight < float("inf"):
            raise DataError(f"the weight of source {name!r} must be 0 or more, not {weight!r}")
    total = sum(weights.values())
    if total <= 0:
        raise DataError("all weights of a stage of the mixture are 0: give one source a weight")
    exact: npt.NDArray[np.float64] = np.array(
        [weights.get(name, 0.0) / total * SHARES for name in names]
    )
    shares: IntegerArray = np.floor(exact).astype(np.int64)
    shares[(shares == 0) & (exact > 0)] = 1
    # Largest remainders first; a stable sort, so that equal ones go by the order of the sources.
    order = np.argsort(shares - exact, kind="stable")
    missing = SHARES - int(shares.sum())
    if missing > 0:
        shares[order[:missing]] += 1
    else:
        shares[int(shares.argmax())] += missing
    return shares


def _counts_before(shares: IntegerArray, positions: IntegerArray) -> IntegerArray:
    """Samples of each source among the first `positions`: [n, sources].

    The largest source takes its even share of the positions, the next largest of what is left, and
    so on: each takes round(left * share / shares left), so the counts sum to the positions.
    """
    counts = np.zeros((len(positions), len(shares)), dtype=np.int64)
    left, shares_left = positions.copy(), int(shares.sum())
    for source in np.argsort(-shares, kind="stable").tolist():
        share = int(shares[source])
        if share == 0:
            break
        # By whole repetitions first, or the product would overflow for large positions.
        rounds, rest = np.divmod(left, shares_left)
        taken = rounds * share + (rest * share + shares_left // 2) // shares_left
        counts[:, source] = taken
        left -= taken
        shares_left -= share
    return counts
