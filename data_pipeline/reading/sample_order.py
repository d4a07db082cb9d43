"""The order of samples within one data set: from a number to a window, by arithmetic alone.

An epoch sees every window once. Its shards are shuffled and cut into groups, and the windows of a
group are shuffled together: reading stays within the shards of a group, so that remote shards can
be fetched ahead and dropped behind, and one group of all shards is a full shuffle. Windows of
different lengths come in *buckets* of similar lengths; then whole blocks of windows of one bucket
are shuffled, so that the samples of a batch need little padding.

Nothing here grows with the number of windows: the tables hold one number a shard and bucket.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError
from data_pipeline.permutation import IntegerArray, KeyArray, derive_keys, mix_keys, permute

# A new version of the order must get new numbers, so that it is another order.
_PURPOSE_SHARDS_2 = 0x0D02
_PURPOSE_WINDOWS_2 = 0x0D03
_PURPOSE_BLOCKS_2 = 0x0D04
_EPOCHS_KEPT = 4


class Places(NamedTuple):
    """Where samples lie, each int64 [n].

    Attributes:
        epochs: Times that the whole data set was seen before.
        shards: Positions of the shards in the manifest.
        buckets: Buckets of the windows' lengths.
        ranks: Which of the shard's windows of that bucket.
    """

    epochs: IntegerArray
    shards: IntegerArray
    buckets: IntegerArray
    ranks: IntegerArray


class _Layout(NamedTuple):
    """How one epoch lays out the shards.

    Attributes:
        shards: [shards] the shuffled shards.
        ends: [shards + 1, buckets] windows before each of them, by bucket.
        group_ends: [groups] windows up to the end of each group.
        group_bucket_starts: [groups, buckets + 1] windows of the group before each bucket.
    """

    shards: IntegerArray
    ends: IntegerArray
    group_ends: IntegerArray
    group_bucket_starts: IntegerArray


class SampleOrder:
    """Which window each sample of a data set is."""

    def __init__(
        self,
        windows: npt.ArrayLike,
        *,
        seed: int,
        source_key: int = 0,
        group_shards: int | None = None,
        block_samples: int = 1,
    ) -> None:
        """Takes the number of windows of every shard.

        Args:
            windows: [shards] or [shards, buckets] numbers of windows.
            seed: Chooses the permutations.
            source_key: Tells data sets of one seed apart, an integer below 2**64.
            group_shards: Shards that are shuffled together; None means all.
            block_samples: Neighbouring samples that come from one bucket.

        Raises:
            DataError: If there is no window, or a number is out of range.
        """
        counts = np.asarray(windows, dtype=np.int64)
        self._counts = counts[:, None] if counts.ndim == 1 else counts
        if group_shards is not None and group_shards < 1:
            raise DataError(f"group_shards must be at least 1, not {group_shards}")
        if block_samples < 1:
            raise DataError(f"block_samples must be at least 1, not {block_samples}")
        self._group_shards = group_shards or max(1, len(self._counts))
        self._block_samples = block_samples
        keys = [
            mix_keys(derive_keys(seed, purpose), source_key)
            for purpose in (_PURPOSE_SHARDS_2, _PURPOSE_WINDOWS_2, _PURPOSE_BLOCKS_2)
        ]
        self._shard_key, self._window_key, self._block_key = keys
        self.samples_per_epoch = int(self._counts.sum())
        if self.samples_per_epoch == 0:
            raise DataError("the data set holds no window")
        self._layout = lru_cache(_EPOCHS_KEPT)(self._make_layout)

    def locate(self, sample_indices: npt.ArrayLike) -> Places:
        """Finds samples.

        Args:
            sample_indices: [n] numbers of samples of this data set.

        Raises:
            DataError: If a number is negative.
        """
        samples = np.asarray(sample_indices, dtype=np.int64)
        if samples.size and samples.min() < 0:
            raise DataError(f"sample {samples.min()} asked for: numbers begin at 0")
        epochs, positions = np.divmod(samples, self.samples_per_epoch)
        places = np.empty((3, len(samples)), dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            places[:, chosen] = self._locate(epoch, positions[chosen])
        return Places(epochs, places[0], places[1], places[2])

    def upcoming_shards(self, sample_index: int, count: int) -> list[int]:
        """Shards in the order in which their groups come, from a sample on: what to fetch next.

        Args:
            sample_index: Number of the next sample.
            count: How many shards are wanted; the rest of the epoch may have fewer.
        """
        epoch, position = divmod(sample_index, self.samples_per_epoch)
        layout = self._layout(epoch)
        group = int(np.searchsorted(layout.group_ends, position, side="right"))
        first = group * self._group_shards
        shards: list[int] = layout.shards[first : first + count].tolist()
        return shards

    def _make_layout(self, epoch: int) -> _Layout:
        num_shards, num_buckets = self._counts.shape
        shards = np.arange(num_shards, dtype=np.int64)
        if self._group_shards < num_shards:
            shards = permute(shards, num_shards, mix_keys(self._shard_key, epoch))
        ends = np.zeros((num_shards + 1, num_buckets), dtype=np.int64)
        np.cumsum(self._counts[shards], axis=0, out=ends[1:])
        firsts = np.arange(0, num_shards, self._group_shards)
        lasts = np.minimum(firsts + self._group_shards, num_shards)
        group_buckets = ends[lasts] - ends[firsts]
        group_bucket_starts = np.zeros((len(firsts), num_buckets + 1), dtype=np.int64)
        np.cumsum(group_buckets, axis=1, out=group_bucket_starts[:, 1:])
        return _Layout(shards, ends, np.cumsum(group_bucket_starts[:, -1]), group_bucket_starts)

    def _locate(self, epoch: int, positions: IntegerArray) -> IntegerArray:
        """Shards, buckets and ranks, [3, n], of positions of one epoch."""
        layout = self._layout(epoch)
        groups = np.searchsorted(layout.group_ends, positions, side="right")
        sizes = layout.group_bucket_starts[groups, -1]
        line = positions - (layout.group_ends[groups] - sizes)
        window_keys = mix_keys(mix_keys(self._window_key, epoch), groups)
        num_buckets = self._counts.shape[1]
        if num_buckets == 1:
            buckets = np.zeros_like(groups)
        else:
            line = self._shuffle_blocks(line, sizes, mix_keys(self._block_key, epoch), groups)
            buckets = (layout.group_bucket_starts[groups, 1:] <= line[:, None]).sum(axis=1)
            window_keys = mix_keys(window_keys, buckets)
        starts = layout.group_bucket_starts[groups, buckets]
        bucket_sizes = layout.group_bucket_starts[groups, buckets + 1] - starts
        windows = permute(line - starts, bucket_sizes, window_keys)
        windows += layout.ends[groups * self._group_shards, buckets]
        shards = np.empty_like(windows)
        for bucket in np.unique(buckets).tolist():
            chosen = buckets == bucket
            ends = layout.ends[1:, bucket]
            shards[chosen] = np.searchsorted(ends, windows[chosen], side="right")
        ranks = windows - layout.ends[shards, buckets]
        return np.stack([layout.shards[shards], buckets, ranks])

    def _shuffle_blocks(
        self, line: IntegerArray, sizes: IntegerArray, key: KeyArray, groups: IntegerArray
    ) -> IntegerArray:
        """Moves whole blocks of a group's line; what is left at its end, no whole block, stays."""
        num_blocks = sizes // self._block_samples
        blocks, within = np.divmod(line, self._block_samples)
        whole = blocks < num_blocks
        moved = permute(
            np.where(whole, blocks, 0), np.maximum(num_blocks, 1), mix_keys(key, groups)
        )
        return np.where(whole, moved * self._block_samples + within, line)
