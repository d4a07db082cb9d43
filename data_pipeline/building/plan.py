"""Which documents go into which shard: decided from the corpus alone, before anything is written.

A shard is a run of documents of one part, in the order of the corpus. Nothing here depends on how
many processes read or write.
"""

from __future__ import annotations

import base64
import itertools
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from data_pipeline.corpora.corpus import Document
from data_pipeline.corpora.corpus_files import CorpusFile, Record
from data_pipeline.corpora.corpus_scan import (
    ReadingOptions,
    Rows,
    name_hash,
    read_rows,
    records_from,
    text_hash,
)
from data_pipeline.corpora.deduplication import BoolArray, DocumentMarks
from data_pipeline.errors import DataError

SMALLEST_SHARD_TEXT_BYTES = 4 * 2**20
LARGEST_SHARD_TEXT_BYTES = 256 * 2**20
# So many shards let that many processes work; larger data sets have more, never larger, shards.
_WANTED_SHARDS = 64

TRAIN, HELDOUT = 0, 1
PART_NAMES = ("train", "heldout")

_CHECKED = np.dtype([("text_high", "<u8"), ("text_low", "<u8"), ("name", "<u8")])
_LOW = 2**64 - 1


class CorpusChangedError(DataError):
    """The corpus is not what it was when it was planned."""


class Members(NamedTuple):
    """Which lines or rows of one file belong to a shard.

    Attributes:
        file: Number of the file.
        first: The first of them.
        span: Lines or rows from the first to the last, both counted.
        packed: Which of the span they are, as packed bits; an empty string where all are.
    """

    file: int
    first: int
    span: int
    packed: str

    def flags(self) -> BoolArray:
        """[span] whether each line or row belongs to the shard."""
        if not self.packed:
            return np.ones(self.span, bool)
        data = np.frombuffer(zlib.decompress(base64.b85decode(self.packed)), np.uint8)
        return np.unpackbits(data, count=self.span).astype(bool)


class ShardPlan(NamedTuple):
    """The documents of one shard.

    Attributes:
        part: `TRAIN` or `HELDOUT`.
        number: Number of the shard within its part.
        documents: Documents in it.
        text_bytes: UTF-8 bytes of them.
        checksum: xxh3_64 over the hashes of their texts and names, in hex.
        offset_bytes: Where the line of the first begins, in a `.jsonl` file.
        members: Where they lie, file by file.
        sources: (number of the input, documents from it), in order.
    """

    part: int
    number: int
    documents: int
    text_bytes: int
    checksum: str
    offset_bytes: int
    members: tuple[Members, ...]
    sources: tuple[tuple[int, int], ...]

    @property
    def name(self) -> str:
        """The part and number, for people and for records."""
        return f"{PART_NAMES[self.part]}/{self.number:06d}"

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> ShardPlan:
        """Out of the list that JSON makes of it."""
        part, number, documents, text_bytes, checksum, offset_bytes, members, sources = value
        return cls(
            part,
            number,
            documents,
            text_bytes,
            checksum,
            offset_bytes,
            tuple(Members(*some) for some in members),
            tuple((source, count) for source, count in sources),
        )


def _members(files: npt.NDArray[Any], ordinals: npt.NDArray[Any]) -> Iterator[Members]:
    """Groups places, which are in order, by file."""
    edges = [0, *(np.flatnonzero(np.diff(files)) + 1).tolist(), len(files)]
    for start, stop in itertools.pairwise(edges):
        mine = ordinals[start:stop].astype(np.int64)
        span = int(mine[-1] - mine[0]) + 1
        packed = ""
        if span > len(mine):
            flags = np.zeros(span, bool)
            flags[mine - mine[0]] = True
            packed = base64.b85encode(zlib.compress(np.packbits(flags).tobytes())).decode("ascii")
        yield Members(int(files[start]), int(mine[0]), span, packed)


class Planner:
    """Divides a scanned corpus into shards."""

    def __init__(
        self,
        tables: Sequence[Path],
        documents: int,
        source_of_file: Sequence[int],
        heldout_fraction: float,
        doubles: DocumentMarks | None = None,
    ) -> None:
        """Reads nothing yet.

        Args:
            tables: The tables of the scan, in order.
            documents: Rows in all of them.
            source_of_file: [files] number of the input of each.
            heldout_fraction: Share of documents held out.
            doubles: Documents to leave out.
        """
        self._tables = tables
        self._source_of_file = np.array(source_of_file, np.int64)
        self._heldout_fraction = heldout_fraction
        self._doubles = doubles or DocumentMarks(documents)
        self.double_documents = 0
        self.double_text_bytes = 0

    def shards(self, shard_text_bytes: int | None) -> list[ShardPlan]:
        """Plans.

        Args:
            shard_text_bytes: Text of a shard; None chooses by the size of the corpus.

        Returns:
            The shards of the training part, then those of the held-out part.
        """
        total_bytes = 0
        self.double_documents, self.double_text_bytes = 0, 0
        for rows, is_double in self._rows():
            total_bytes += int(rows["size_bytes"][~is_double].sum())
            self.double_documents += int(is_double.sum())
            self.double_text_bytes += int(rows["size_bytes"][is_double].sum())
        if shard_text_bytes is None:
            shard_text_bytes = min(
                LARGEST_SHARD_TEXT_BYTES,
                max(SMALLEST_SHARD_TEXT_BYTES, total_bytes // _WANTED_SHARDS),
            )
        parts = [
            _PartPlanner(part, shard_text_bytes, self._source_of_file) for part in (TRAIN, HELDOUT)
        ]
        # Exact: `is_heldout` compares an integer with a float.
        bound = np.uint64(math.ceil(self._heldout_fraction * 2.0**64))
        for rows, is_double in self._rows():
            heldout = rows["name"] < bound
            for part in (TRAIN, HELDOUT):
                parts[part].add(rows[~is_double & (heldout == (part == HELDOUT))])
        return [shard for part in parts for shard in part.finish()]

    def _rows(self) -> Iterator[tuple[Rows, BoolArray]]:
        first = 0
        for table in self._tables:
            for rows in read_rows(table):
                yield rows, self._doubles.between(first, first + len(rows))
                first += len(rows)


class _PartPlanner:
    """Cuts the documents of one part into shards, as they come."""

    def __init__(
        self, part: int, shard_text_bytes: int, source_of_file: npt.NDArray[np.int64]
    ) -> None:
        self._part = part
        self._limit_bytes = shard_text_bytes
        self._source_of_file = source_of_file
        self._shards: list[ShardPlan] = []
        # Of the shard that is not full yet.
        self._rows: list[Rows] = []
        self._text_bytes = 0

    def add(self, rows: Rows) -> None:
        """Takes the next documents."""
        sizes_bytes = rows["size_bytes"].astype(np.int64)
        ends_bytes = np.cumsum(sizes_bytes)
        first = 0
        while first < len(rows):
            before_bytes = int(ends_bytes[first] - sizes_bytes[first])
            room_bytes = self._limit_bytes - self._text_bytes
            stop = int(np.searchsorted(ends_bytes, before_bytes + room_bytes, side="right"))
            # A document longer than a shard has one for itself.
            stop = max(stop, first + (not self._rows))
            if stop <= first:
                self._close()
                continue
            self._rows.append(rows[first:stop])
            self._text_bytes += int(ends_bytes[stop - 1]) - before_bytes
            first = stop

    def _close(self) -> None:
        rows = np.concatenate(self._rows)
        sources, counts = np.unique(self._source_of_file[rows["file"]], return_counts=True)
        self._shards.append(
            ShardPlan(
                part=self._part,
                number=len(self._shards),
                documents=len(rows),
                text_bytes=self._text_bytes,
                checksum=xxhash.xxh3_64_hexdigest(_checked(rows).tobytes()),
                offset_bytes=int(rows["offset_bytes"][0]),
                members=tuple(_members(rows["file"], rows["ordinal"])),
                sources=tuple(zip(sources.tolist(), counts.tolist(), strict=True)),
            )
        )
        self._rows, self._text_bytes = [], 0

    def finish(self) -> list[ShardPlan]:
        """All shards, the last of which need not be full."""
        if self._rows:
            self._close()
        return self._shards


def _checked(rows: Rows) -> npt.NDArray[Any]:
    checked = np.empty(len(rows), _CHECKED)
    for name in _CHECKED.names or ():
        checked[name] = rows[name]
    return checked


class PlanReader:
    """Reads the documents of shards; in compressed files it goes on where it stopped."""

    def __init__(self, files: Sequence[CorpusFile], options: ReadingOptions) -> None:
        """Reads nothing yet.

        Args:
            files: The corpus.
            options: How to read it, as for the plan.
        """
        self._files = files
        self._options = options
        self._open_file = -1
        self._last_ordinal = -1
        self._records: Iterator[Record] = iter(())
        self._first = 0
        self._flags: list[bool] = []

    def read(self, shard: ShardPlan) -> Iterator[Document]:
        """Yields the documents of a shard.

        Raises:
            CorpusChangedError: If the corpus is not what it was when it was planned.
        """
        checksum = xxhash.xxh3_64()
        documents = 0
        for number, members in enumerate(shard.members):
            for record in self._selected(members, 0 if number else shard.offset_bytes):
                if record.text is None:
                    raise _changed(shard)
                text = self._options.rules.apply(record.text, record.size_bytes).text
                if text is None:
                    raise _changed(shard)
                documents += 1
                text_128 = text_hash(text)
                row = (text_128 >> 64, text_128 & _LOW, name_hash(record.name))
                checksum.update(np.array(row, _CHECKED).tobytes())
                yield Document(record.name, text)
        if documents != shard.documents or checksum.hexdigest() != shard.checksum:
            raise _changed(shard)

    def _selected(self, members: Members, offset_bytes: int) -> Iterator[Record]:
        """The records of a shard in one file."""
        file = self._files[members.file]
        goes_on = self._open_file == members.file and self._last_ordinal < members.first
        self._first, self._flags = members.first, members.flags().tolist()
        # In an uncompressed file the place is found faster than what lies between is passed by.
        if not goes_on or file.suffix == ".jsonl":
            self._records = records_from(
                file, self._options, members.first, offset_bytes, wanted=self._is_wanted
            )
            self._open_file = members.file
        last = members.first + members.span - 1
        for record in self._records:
            self._last_ordinal = record.ordinal
            yield record
            if record.ordinal >= last:
                return

    def _is_wanted(self, ordinal: int) -> bool:
        place = ordinal - self._first
        return 0 <= place < len(self._flags) and self._flags[place]


def _changed(shard: ShardPlan) -> CorpusChangedError:
    return CorpusChangedError(
        f"the corpus changed since it was read first: the documents of shard {shard.name} are not "
        "those it was planned with; run the command again when the corpus no longer changes"
    )
