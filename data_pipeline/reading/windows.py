"""What a sample is cut out of: how many windows a shard holds, and where each of them lies.

Two ways to cut are known. `concat` lays the documents of a shard end to end and cuts windows of one
length: every window is full, only a shard's last tokens are left out. `document` never joins two
documents: one that is longer than a window is cut into equal parts, and parts come in buckets of
similar lengths, so that a batch out of one bucket needs little padding.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections import OrderedDict
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError
from data_pipeline.files import make_folder, write_atomically
from data_pipeline.permutation import IntegerArray
from data_pipeline.reading.dataset_reader import document_lengths
from data_pipeline.remote.dataset_folder import DatasetFolder, LocalFolder
from data_pipeline.shards.manifest import Manifest

WindowMode = Literal["concat", "document"]

# Documents shorter than this teach nothing and are left out.
SHORTEST_DOCUMENT_TOKENS = 8
_FIRST_BUCKET_TOKENS = 16
# Longest over shortest length of a bucket: 4 % of padding on average.
_BUCKET_RATIO = 1.08
_SHARDS_KEPT = 64
_COUNTS_FOLDER = ".windows"
_COUNTS_VERSION = 1


class WindowLayout(Protocol):
    """How shards are cut into windows.

    Attributes:
        window_tokens: Length of the longest window.
        counts: [shards, buckets] number of windows.
    """

    window_tokens: int
    counts: IntegerArray

    def spans(
        self, shards: IntegerArray, buckets: IntegerArray, ranks: IntegerArray
    ) -> tuple[IntegerArray, IntegerArray]:
        """Where windows lie: first tokens within their shards, and lengths, int64 [n] each."""


class ConcatWindows:
    """Windows of one length over the documents of a shard laid end to end."""

    def __init__(self, manifest: Manifest, window_tokens: int) -> None:
        """Counts windows from the manifest alone.

        Args:
            manifest: The data set.
            window_tokens: Length of a window.
        """
        self.window_tokens = window_tokens
        tokens = np.array([shard.tokens for shard in manifest.shards], dtype=np.int64)
        self.counts: IntegerArray = (tokens // window_tokens)[:, None]

    def spans(
        self, shards: IntegerArray, buckets: IntegerArray, ranks: IntegerArray
    ) -> tuple[IntegerArray, IntegerArray]:
        """See `WindowLayout.spans`."""
        return ranks * self.window_tokens, np.full_like(ranks, self.window_tokens)


class DocumentWindows:
    """One document a window, or one part of a document that is too long for it."""

    def __init__(self, folder: DatasetFolder, manifest: Manifest, window_tokens: int) -> None:
        """Counts windows from the indexes, once: the counts are kept beside the data set.

        Args:
            folder: The data set.
            manifest: Its manifest.
            window_tokens: Length of the longest window.

        Raises:
            DataError: If an index is missing or damaged.
        """
        self.window_tokens = window_tokens
        self._folder = folder
        self._manifest = manifest
        self._edges = bucket_edges(window_tokens)
        self._shards: OrderedDict[int, tuple[IntegerArray, IntegerArray, IntegerArray]]
        self._shards = OrderedDict()
        self.counts = self._kept_counts()

    def spans(
        self, shards: IntegerArray, buckets: IntegerArray, ranks: IntegerArray
    ) -> tuple[IntegerArray, IntegerArray]:
        """See `WindowLayout.spans`."""
        starts, lengths = np.empty_like(ranks), np.empty_like(ranks)
        for shard in np.unique(shards).tolist():
            chosen = shards == shard
            part_starts, part_lengths, bucket_starts = self._parts(shard)
            parts = bucket_starts[buckets[chosen]] + ranks[chosen]
            starts[chosen], lengths[chosen] = part_starts[parts], part_lengths[parts]
        return starts, lengths

    def _parts(self, shard: int) -> tuple[IntegerArray, IntegerArray, IntegerArray]:
        """First tokens and lengths of a shard's parts by bucket, and where buckets begin."""
        found = self._shards.get(shard)
        if found is not None:
            self._shards.move_to_end(shard)
            return found
        starts, lengths = document_parts(
            document_lengths(self._folder, self._manifest, shard), self.window_tokens
        )
        buckets = np.searchsorted(self._edges, lengths)
        order = np.argsort(buckets, kind="stable")
        bucket_starts = np.searchsorted(buckets[order], np.arange(len(self._edges)))
        found = starts[order], lengths[order], bucket_starts.astype(np.int64)
        self._shards[shard] = found
        if len(self._shards) > _SHARDS_KEPT:
            self._shards.popitem(last=False)
        return found

    def _cut(self, shard: int) -> tuple[IntegerArray, IntegerArray]:
        """First tokens and lengths of a shard's parts, in order."""
        lengths = document_lengths(self._folder, self._manifest, shard)
        return document_parts(lengths, self.window_tokens)

    def _kept_counts(self) -> IntegerArray:
        """The counts as they were kept, or counted anew and kept where that is possible."""
        shape = (len(self._manifest.shards), len(self._edges))
        path = None
        if isinstance(self._folder, LocalFolder):
            identity = f"{_COUNTS_VERSION} {self._manifest.fingerprint} {self._edges.tolist()}"
            name = hashlib.sha256(identity.encode()).hexdigest()[:32]
            path = self._folder.path / _COUNTS_FOLDER / f"{self.window_tokens}-{name}.npy"
            with contextlib.suppress(OSError, ValueError, EOFError):
                kept = np.load(path, allow_pickle=False)
                if kept.shape == shape and kept.dtype == np.int64:
                    return np.asarray(kept)
        counts = np.zeros(shape, dtype=np.int64)
        for shard in range(shape[0]):
            _, lengths = document_parts(
                document_lengths(self._folder, self._manifest, shard), self.window_tokens
            )
            buckets = np.searchsorted(self._edges, lengths)
            counts[shard] = np.bincount(buckets, minlength=shape[1])
        if path is not None:
            # A data set that cannot be written is counted again by every run.
            with contextlib.suppress(DataError):
                content = io.BytesIO()
                np.save(content, counts, allow_pickle=False)
                make_folder(path.parent)
                write_atomically(path, content.getvalue())
        return counts


def bucket_edges(window_tokens: int) -> IntegerArray:
    """Longest length of each bucket, rising, the last one `window_tokens`: int64 [buckets]."""
    edges = [min(_FIRST_BUCKET_TOKENS, window_tokens)]
    while edges[-1] < window_tokens:
        following = max(edges[-1] + 1, int(edges[-1] * _BUCKET_RATIO))
        edges.append(min(following, window_tokens))
    return np.array(edges, dtype=np.int64)


def document_parts(
    lengths_tokens: npt.ArrayLike, window_tokens: int
) -> tuple[IntegerArray, IntegerArray]:
    """Cuts documents into as few parts as fit into windows, equal to within one token.

    Args:
        lengths_tokens: [documents] lengths, the documents lying end to end.
        window_tokens: Longest part.

    Returns:
        First tokens and lengths of the parts, int64 [parts] each, in order; documents
        shorter than `SHORTEST_DOCUMENT_TOKENS` are left out.
    """
    lengths = np.asarray(lengths_tokens, dtype=np.int64)
    num_parts = np.where(lengths < SHORTEST_DOCUMENT_TOKENS, 0, -(-lengths // window_tokens))
    document_starts = np.cumsum(lengths) - lengths
    part = np.arange(int(num_parts.sum())) - np.repeat(np.cumsum(num_parts) - num_parts, num_parts)
    length, of = np.repeat(lengths, num_parts), np.repeat(num_parts, num_parts)
    begin, end = part * length // of, (part + 1) * length // of
    return np.repeat(document_starts, num_parts) + begin, end - begin


def make_windows(
    mode: WindowMode, folder: DatasetFolder, manifest: Manifest, window_tokens: int
) -> WindowLayout:
    """The windows of a data set.

    Raises:
        DataError: If the mode is unknown, the length is out of range, or no window fits.
    """
    if window_tokens < SHORTEST_DOCUMENT_TOKENS:
        raise DataError(
            f"window_tokens must be at least {SHORTEST_DOCUMENT_TOKENS}, not {window_tokens}"
        )
    windows: WindowLayout
    if mode == "concat":
        windows = ConcatWindows(manifest, window_tokens)
    elif mode == "document":
        windows = DocumentWindows(folder, manifest, window_tokens)
    else:
        raise DataError(f"windows must be 'concat' or 'document', not {mode!r}")
    if not windows.counts.any():
        longest = max((shard.tokens for shard in manifest.shards), default=0)
        raise DataError(
            f"{folder.name}: no window of {window_tokens} tokens fits: the largest shard has "
            f"{longest} tokens; add documents or choose a shorter input_length_tokens"
        )
    return windows
