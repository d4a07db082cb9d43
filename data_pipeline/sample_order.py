"""The order of samples: from a number to a window of tokens, by arithmetic alone.

A sample is a window of equal length within one shard, whose documents lie end to end. Sample `i`
belongs to epoch `i // N` over the N windows of the data set; the epoch's permutation, keyed by seed
and epoch, says which window it is. So the whole state of a run is one number, any process finds any
sample at once, and one epoch sees every window exactly once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest
from data_pipeline.permutation import IntegerArray, check_seed, derive_keys, permute

# A new version of the order must get a new number, so that it is another order.
_PURPOSE_ORDER_1 = 0x0D01


class SampleOrder:
    """Which window each sample is."""

    def __init__(self, manifest: Manifest, *, window_tokens: int, seed: int) -> None:
        """Counts the windows of each shard; the rest of a shard that fills none is left out.

        Args:
            manifest: The data set.
            window_tokens: Length of a window.
            seed: Chooses the permutations.

        Raises:
            DataError: If no shard is as long as a window, or the seed is out of range.
        """
        if window_tokens < 1:
            raise DataError(f"window_tokens must be at least 1, not {window_tokens}")
        self.window_tokens = window_tokens
        self.seed = check_seed(seed)
        windows = np.array([shard.tokens // window_tokens for shard in manifest.shards], np.int64)
        self._ends = np.cumsum(windows)
        self._starts = self._ends - windows
        self.samples_per_epoch = int(windows.sum())
        if self.samples_per_epoch == 0:
            longest = max((shard.tokens for shard in manifest.shards), default=0)
            raise DataError(
                f"no window of {window_tokens} tokens fits: the largest shard has {longest} "
                "tokens; add documents or choose a shorter input_length_tokens"
            )

    def locate(
        self, sample_indices: npt.ArrayLike
    ) -> tuple[IntegerArray, IntegerArray, IntegerArray]:
        """Finds samples.

        Args:
            sample_indices: [n] non-negative numbers.

        Returns:
            Epoch, position of the shard in the manifest, and first token within the shard, each
            int64 [n].

        Raises:
            DataError: If a number is negative.
        """
        samples = np.asarray(sample_indices, dtype=np.int64)
        if samples.size and samples.min() < 0:
            raise DataError(f"sample {samples.min()} asked for: numbers begin at 0")
        epochs, positions = np.divmod(samples, self.samples_per_epoch)
        keys = derive_keys(self.seed, _PURPOSE_ORDER_1, epochs)
        windows = permute(positions, self.samples_per_epoch, keys)
        shards = np.searchsorted(self._ends, windows, side="right")
        start_tokens = (windows - self._starts[shards]) * self.window_tokens
        return epochs, shards.astype(np.int64), start_tokens
