"""Where samples of a mixture lie."""

from __future__ import annotations

from typing import NamedTuple

from data_pipeline.permutation import IntegerArray, KeyArray


class Samples(NamedTuple):
    """Where samples lie; every array is [n].

    Attributes:
        sources: Positions of the sources in the mixture.
        numbers: Which samples of their sources they are.
        shards: Positions of the shards in the manifests.
        starts: First tokens within the shards.
        lengths: Tokens.
        keys: One key a sample, for the objective.
    """

    sources: IntegerArray
    numbers: IntegerArray
    shards: IntegerArray
    starts: IntegerArray
    lengths: IntegerArray
    keys: KeyArray

    def slice(self, start: int, stop: int) -> Samples:
        """Some of them."""
        return Samples(
            self.sources[start:stop],
            self.numbers[start:stop],
            self.shards[start:stop],
            self.starts[start:stop],
            self.lengths[start:stop],
            self.keys[start:stop],
        )
