"""How a document is cut into the segments that are tokenized one by one, and their sampling.

Encoding a long text in one call adds up scores in single precision until near-ties tip over, so
the ids of a word would depend on what stands far before it. Short segments keep them stable.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Sequence

import numpy as np
import xxhash

from data_pipeline.corpora.corpus import Document, name_bytes
from data_pipeline.permutation import splitmix64

SEGMENT_CHARACTERS = 8192
# A line with its end, or a piece of a line that is longer than a segment may be.
SEGMENT_PATTERN = r"[^\n]{0,8191}\n|[^\n]{1,8192}"

_SEGMENT = re.compile(SEGMENT_PATTERN)
DEFAULT_DOCUMENT_BYTES = 2**16
_BEYOND = 2**63
BLOCK_CHARACTERS = 32 * SEGMENT_CHARACTERS


def iterate_segment_blocks(
    text: str, block_characters: int = BLOCK_CHARACTERS
) -> Iterator[list[str]]:
    """Cuts `text` by `SEGMENT_PATTERN`, a bounded part of it at a time.

    Args:
        text: The whole document.
        block_characters: Upper bound of a part, a multiple of `SEGMENT_CHARACTERS`.

    Yields:
        Lists of segments; all lists in a row equal `re.findall(SEGMENT_PATTERN, text)`.
    """
    start = 0
    while start < len(text):
        end = start + block_characters
        if end < len(text):
            # A part ends behind a line end. Where none is near, all of it is one piece of a long
            # line that began at `start` or a multiple of the segment length before it.
            end = text.rfind("\n", start, end) + 1 or end
        yield _SEGMENT.findall(text[start:end])
        start = end


def iterate_segments(text: str) -> Iterator[str]:
    """The segments of a document, one by one."""
    for segments in iterate_segment_blocks(text):
        yield from segments


def iterate_chunks(text: str) -> Iterator[str]:
    """Cuts `text` as the pattern does, but leaves neighbouring lines together where they fit.

    Where no piece of the vocabulary holds a line end and sums of scores are exact
    (`exact_scores`), the ids of a chunk are those of its segments in a row, and few long calls are
    twice as fast as many short ones.

    Args:
        text: The whole document.

    Yields:
        Chunks of at most `SEGMENT_CHARACTERS`.
    """
    start = 0
    while start < len(text):
        end = start + SEGMENT_CHARACTERS
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end


class SegmentSample:
    """A random sample of segments of bounded size, spread evenly over all documents.

    Every segment has a pseudorandom priority computed from the seed, its document's name and its
    number; those of lowest priority are kept as long as they fit. So each input has a share of the
    sample in proportion to its size, and the sample depends neither on the order of the documents
    nor on knowing their number in advance. What one document has beyond `document_bytes` is taken
    only where everything else leaves room: a giant does not drown the others.
    """

    def __init__(
        self, limit_bytes: int, seed: int, document_bytes: int = DEFAULT_DOCUMENT_BYTES
    ) -> None:
        """Starts an empty sample.

        Args:
            limit_bytes: Most UTF-8 bytes of segments to keep.
            seed: Chooses the sample.
            document_bytes: UTF-8 bytes of one document that compete with those of others.
        """
        self._limit_bytes = limit_bytes
        self._seed = seed
        self._document_bytes = document_bytes
        self._threshold = 2**64
        self._heap: list[tuple[int, str]] = []
        self._sample_bytes = 0

    @property
    def sample_bytes(self) -> int:
        """UTF-8 bytes kept at the moment."""
        return self._sample_bytes

    def add(self, document: Document) -> None:
        """Considers every segment of a document (line ends are left away, blank lines too)."""
        base = np.uint64(xxhash.xxh3_64_intdigest(name_bytes(document.name), self._seed))
        first = 0
        mine = _Share(self._document_bytes, self._limit_bytes)
        for segments in iterate_segment_blocks(document.text):
            numbers = np.arange(first, first + len(segments), dtype=np.uint64)
            # Half of the range: the other half is for what a document has beyond its share.
            priorities = splitmix64(base + splitmix64(numbers)) >> np.uint64(1)
            # The comparison in numpy skips nearly everything once the sample is full.
            bound = np.uint64(min(self._threshold, _BEYOND - 1))
            for index in np.flatnonzero(priorities <= bound).tolist():
                segment = segments[index].rstrip("\n")
                if segment:
                    mine.add(int(priorities[index]), segment)
            first += len(segments)
        for priority, segment in mine.ranked():
            self._consider(priority, segment)

    def _consider(self, priority: int, segment: str) -> None:
        if priority >= self._threshold:
            return
        heapq.heappush(self._heap, (-priority, segment))
        self._sample_bytes += len(segment.encode())
        while self._sample_bytes > self._limit_bytes:
            worst, dropped = heapq.heappop(self._heap)
            self._sample_bytes -= len(dropped.encode())
            # Nothing of worse priority may come in later, or the order of documents would matter.
            self._threshold = -worst

    def segments(self) -> list[str]:
        """What is kept, in order of priority."""
        return [segment for _, segment in sorted(self._heap, reverse=True)]


class _Share:
    """The segments of one document, those beyond its share with worse priority."""

    def __init__(self, share_bytes: int, limit_bytes: int) -> None:
        self._share_bytes = share_bytes
        self._limit_bytes = limit_bytes
        self._segments: list[tuple[int, str]] = []
        self._size_bytes = 0

    def add(self, priority: int, segment: str) -> None:
        self._segments.append((priority, segment))
        self._size_bytes += len(segment.encode())
        if self._size_bytes > 2 * self._limit_bytes:
            # A long document must not be held twice: what cannot be kept in the end goes now.
            self._segments.sort()
            while self._size_bytes > self._limit_bytes:
                self._size_bytes -= len(self._segments.pop()[1].encode())

    def ranked(self) -> Iterator[tuple[int, str]]:
        self._segments.sort()
        used_bytes = 0
        for priority, segment in self._segments:
            used_bytes += len(segment.encode())
            yield priority if used_bytes <= self._share_bytes else _BEYOND + priority, segment


class StratifiedSample:
    """A sample in which each input has its share: by size, or the same for all."""

    def __init__(self, limit_bytes: int, seed: int, *, is_equal: bool = False) -> None:
        """Starts an empty sample.

        Args:
            limit_bytes: Most UTF-8 bytes to keep.
            seed: Chooses the sample.
            is_equal: Give all inputs the same share, as far as they have so much text.
        """
        self._limit_bytes = limit_bytes
        self._seed = seed
        self._is_equal = is_equal
        # Equal shares are known only at the end: until then each input may need all the room.
        self._samples: dict[int, SegmentSample] = {}

    def add(self, document: Document) -> None:
        """Considers every segment of a document."""
        stratum = document.source if self._is_equal else 0
        if stratum not in self._samples:
            self._samples[stratum] = SegmentSample(self._limit_bytes, self._seed)
        self._samples[stratum].add(document)

    def segments(self) -> list[str]:
        """What is kept, input by input in equal shares, in order of priority."""
        ordered = [self._samples[stratum] for stratum in sorted(self._samples)]
        sizes_bytes = [sample.sample_bytes for sample in ordered]
        kept: list[str] = []
        for sample, share_bytes in zip(
            ordered, level_shares(sizes_bytes, self._limit_bytes), strict=True
        ):
            used_bytes = 0
            for segment in sample.segments():
                used_bytes += len(segment.encode())
                if used_bytes > share_bytes:
                    break
                kept.append(segment)
        return kept


def level_shares(sizes: Sequence[int], total: int) -> list[int]:
    """Divides `total` so that all get the same, but none more than its size.

    Args:
        sizes: What each can take.
        total: What there is.

    Returns:
        The shares, which together are at most `total`.
    """
    shares = [0] * len(sizes)
    left, open_places = total, len(sizes)
    for place in sorted(range(len(sizes)), key=lambda place: sizes[place]):
        shares[place] = min(sizes[place], left // open_places)
        left -= shares[place]
        open_places -= 1
    return shares
