"""How a document is cut into the segments that are tokenized one by one, and their sampling.

Encoding a long text in one call adds up scores in single precision until near-ties tip over, so
the ids of a word would depend on what stands far before it. Short segments keep them stable.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator

import numpy as np
import xxhash

from data_pipeline.corpus import Document, name_bytes
from data_pipeline.permutation import splitmix64

SEGMENT_CHARACTERS = 8192
# A line with its end, or a piece of a line that is longer than a segment may be.
SEGMENT_PATTERN = r"[^\n]{0,8191}\n|[^\n]{1,8192}"

_SEGMENT = re.compile(SEGMENT_PATTERN)
_BLOCK_CHARACTERS = 32 * SEGMENT_CHARACTERS


def iterate_segment_blocks(
    text: str, block_characters: int = _BLOCK_CHARACTERS
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


class SegmentSample:
    """A random sample of segments of bounded size, spread evenly over all documents.

    Every segment has a pseudorandom priority computed from the seed, its document's name and its
    number; those of lowest priority are kept as long as they fit. So the sample depends neither
    on the order of the documents nor on knowing their number in advance.
    """

    def __init__(self, limit_bytes: int, seed: int) -> None:
        """Starts an empty sample.

        Args:
            limit_bytes: Most UTF-8 bytes of segments to keep.
            seed: Chooses the sample.
        """
        self._limit_bytes = limit_bytes
        self._seed = seed
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
        for segments in iterate_segment_blocks(document.text):
            numbers = np.arange(first, first + len(segments), dtype=np.uint64)
            priorities = splitmix64(base + splitmix64(numbers))
            # The comparison in numpy skips nearly everything once the sample is full.
            bound = np.uint64(min(self._threshold, 2**64 - 1))
            for index in np.flatnonzero(priorities <= bound).tolist():
                self._consider(int(priorities[index]), segments[index].rstrip("\n"))
            first += len(segments)

    def _consider(self, priority: int, segment: str) -> None:
        if priority >= self._threshold or not segment:
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
