"""Which documents go into which shard: decided from the corpus alone, before anything is written.

A first pass reads the corpus and sums it up in blocks of neighbouring documents; shards are runs of
whole blocks. Nothing here depends on how many processes read or write.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import xxhash

from data_pipeline.corpus import Document, is_heldout, name_bytes
from data_pipeline.corpus_files import CorpusFile, Record, read_records, utf8_bytes
from data_pipeline.errors import DataError

SMALLEST_SHARD_TEXT_BYTES = 4 * 2**20
LARGEST_SHARD_TEXT_BYTES = 256 * 2**20
# So many shards let that many processes work; larger data sets have more, never larger, shards.
_WANTED_SHARDS = 64
_BLOCKS_PER_SHARD = 16
_HASHED_CHARACTERS_AT_A_TIME = 2**20

TRAIN, HELDOUT = 0, 1
PART_NAMES = ("train", "heldout")


@dataclass(frozen=True)
class ReadingOptions:
    """How the corpus is read and divided.

    Attributes:
        text_field: Field or column with the text.
        name_field: Field or column with the name.
        heldout_fraction: Share of documents held out.
    """

    text_field: str
    name_field: str
    heldout_fraction: float

    def part(self, name: str) -> int:
        """`HELDOUT` or `TRAIN`, for the document of this name."""
        return HELDOUT if is_heldout(name, self.heldout_fraction) else TRAIN


class Position(NamedTuple):
    """A place in the corpus: file, line or row in it, and where that line begins."""

    file: int
    ordinal: int
    offset_bytes: int


class Block(NamedTuple):
    """Neighbouring documents of one file, summed up by part.

    Attributes:
        start: Position of the first of them.
        documents: (train, held-out) usable documents.
        text_bytes: (train, held-out) UTF-8 bytes.
    """

    start: Position
    documents: tuple[int, int]
    text_bytes: tuple[int, int]


@dataclass
class FileScan:
    """What the first pass learned of one file: blocks, unusable documents, and a checksum."""

    blocks: list[Block] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    checksum: str = ""

    def to_json(self) -> list[Any]:
        """As JSON types."""
        return [self.blocks, self.problems, self.checksum]

    @classmethod
    def from_json(cls, value: list[Any]) -> FileScan:
        """The inverse of `to_json`."""
        blocks = [
            Block(Position(*start), tuple(documents), tuple(text_bytes))
            for start, documents, text_bytes in value[0]
        ]
        return cls(blocks, [(name, reason) for name, reason in value[1]], value[2])


class ShardPlan(NamedTuple):
    """The documents of one shard: those of its part from `start` up to, without, `stop`."""

    part: int
    number: int
    start: Position
    stop: Position
    documents: int
    text_bytes: int

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> ShardPlan:
        """Out of the list that JSON makes of it."""
        part, number, start, stop, documents, text_bytes = value
        return cls(part, number, Position(*start), Position(*stop), documents, text_bytes)


def block_text_bytes(shard_text_bytes: int | None) -> int:
    """Text of a block, small beside a shard."""
    return max(1, (shard_text_bytes or SMALLEST_SHARD_TEXT_BYTES) // _BLOCKS_PER_SHARD)


def scan_file(
    files: Sequence[CorpusFile],
    number: int,
    options: ReadingOptions,
    block_bytes: int,
    report: Callable[[int], None],
) -> FileScan:
    """Reads one file of the corpus through and sums it up.

    Args:
        files: The corpus.
        number: The file to read.
        options: How to read it.
        block_bytes: Text after which a block is full.
        report: Told of the text bytes read.

    Raises:
        DataError: If the file is corrupt as a whole.
    """
    scan = FileScan()
    checksum = xxhash.xxh3_128()
    documents, text_bytes = [0, 0], [0, 0]
    start: Position | None = None

    def close_block() -> None:
        nonlocal start
        if start is not None:
            block = Block(start, (documents[0], documents[1]), (text_bytes[0], text_bytes[1]))
            scan.blocks.append(block)
        start = None
        documents[:], text_bytes[:] = [0, 0], [0, 0]

    for record in _records(files[number], options):
        if record.text is None:
            problem = record.problem or "unusable"
            scan.problems.append((record.name, problem))
            checksum.update(b"unusable " + name_bytes(f"{record.name}: {problem}\n"))
            continue
        size_bytes = utf8_bytes(record.text)
        assert size_bytes is not None, "reading leaves out invalid Unicode"
        if start is not None and sum(text_bytes) + size_bytes > block_bytes:
            close_block()
        if start is None:
            start = Position(number, record.ordinal, record.offset_bytes)
        part = options.part(record.name)
        documents[part] += 1
        text_bytes[part] += size_bytes
        _hash_document(checksum, record.name, record.text, size_bytes)
        report(size_bytes)
    close_block()
    scan.checksum = checksum.hexdigest()
    return scan


def _records(
    file: CorpusFile, options: ReadingOptions, ordinal: int = 0, offset_bytes: int = 0
) -> Iterator[Record]:
    return read_records(
        file,
        text_field=options.text_field,
        name_field=options.name_field,
        start_ordinal=ordinal,
        start_offset_bytes=offset_bytes,
    )


def _hash_document(checksum: Any, name: str, text: str, size_bytes: int) -> None:
    encoded = name_bytes(name)
    checksum.update(b"%d %d\n" % (len(encoded), size_bytes) + encoded)
    for start in range(0, len(text), _HASHED_CHARACTERS_AT_A_TIME):
        checksum.update(text[start : start + _HASHED_CHARACTERS_AT_A_TIME].encode())


def corpus_fingerprint(scans: Sequence[FileScan]) -> str:
    """SHA-256 over names and texts of all documents in order, in hex; unusable ones count too."""
    digest = hashlib.sha256()
    for scan in scans:
        digest.update(scan.checksum.encode() + b"\n")
    return digest.hexdigest()


def plan_shards(scans: Sequence[FileScan], shard_text_bytes: int | None) -> list[ShardPlan]:
    """Divides the corpus into shards.

    Args:
        scans: [files] what the first pass found.
        shard_text_bytes: Text of a shard; None chooses by the size of the corpus.

    Returns:
        The shards of the training part, then those of the held-out part.
    """
    blocks = [block for scan in scans for block in scan.blocks]
    if shard_text_bytes is None:
        total_bytes = sum(sum(block.text_bytes) for block in blocks)
        shard_text_bytes = min(
            LARGEST_SHARD_TEXT_BYTES, max(SMALLEST_SHARD_TEXT_BYTES, total_bytes // _WANTED_SHARDS)
        )
    end = Position(len(scans), 0, 0)
    return [
        shard
        for part in (TRAIN, HELDOUT)
        for shard in _plan_part(blocks, part, shard_text_bytes, end)
    ]


def _plan_part(
    blocks: Sequence[Block], part: int, shard_text_bytes: int, end: Position
) -> Iterator[ShardPlan]:
    number, documents, text_bytes = 0, 0, 0
    start: Position | None = None
    for block in blocks:
        if block.documents[part] == 0:
            continue
        if start is not None and text_bytes + block.text_bytes[part] > shard_text_bytes:
            yield ShardPlan(part, number, start, block.start, documents, text_bytes)
            number, documents, text_bytes, start = number + 1, 0, 0, None
        start = start or block.start
        documents += block.documents[part]
        text_bytes += block.text_bytes[part]
    if start is not None:
        yield ShardPlan(part, number, start, end, documents, text_bytes)


class PlanReader:
    """Reads the documents of shards, going on where it stopped if the next shard begins there."""

    def __init__(self, files: Sequence[CorpusFile], options: ReadingOptions) -> None:
        """Reads nothing yet.

        Args:
            files: The corpus.
            options: How to read it, as for the plan.
        """
        self._files = files
        self._options = options
        self._records: Iterator[tuple[Position, Record]] = iter(())
        self._stopped_at: Position | None = None
        # The record that lies at `_stopped_at` and has been taken from the iterator.
        self._pending: tuple[Position, Record] | None = None

    def read(self, shard: ShardPlan) -> Iterator[Document]:
        """Yields the documents of a shard.

        Raises:
            DataError: If the corpus is not what it was when it was planned.
        """
        if self._stopped_at != shard.start:
            self._records, self._pending = self._read_from(shard.start), None
        self._stopped_at = None
        documents, text_bytes = 0, 0
        while (entry := self._pending or next(self._records, None)) is not None:
            self._pending = None
            position, record = entry
            if position[:2] >= shard.stop[:2]:
                self._stopped_at, self._pending = position, entry
                break
            if record.text is None or self._options.part(record.name) != shard.part:
                continue
            documents += 1
            text_bytes += utf8_bytes(record.text) or 0
            yield Document(record.name, record.text)
        if (documents, text_bytes) != (shard.documents, shard.text_bytes):
            raise DataError(
                f"the corpus changed while it was read: {PART_NAMES[shard.part]} shard "
                f"{shard.number} was planned with {shard.documents} documents of "
                f"{shard.text_bytes} bytes and now has {documents} of {text_bytes}; run the "
                "command again when the corpus no longer changes"
            )

    def _read_from(self, start: Position) -> Iterator[tuple[Position, Record]]:
        ordinal, offset_bytes = start.ordinal, start.offset_bytes
        for number in range(start.file, len(self._files)):
            for record in _records(self._files[number], self._options, ordinal, offset_bytes):
                yield Position(number, record.ordinal, record.offset_bytes), record
            ordinal, offset_bytes = 0, 0
