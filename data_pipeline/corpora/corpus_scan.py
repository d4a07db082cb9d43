"""The first pass over a corpus: one row for each usable document, in tables on disk.

Everything else about a data set follows from these rows: which documents are doubles, and which go
into which shard. The corpus is scanned in units that depend on its files alone, each a run of small
files or a stretch of a long one, so that many processes share the work and an interrupted build
finds the tables of finished units again.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from data_pipeline.corpora.corpus import name_bytes
from data_pipeline.corpora.corpus_files import CorpusFile, Record, first_line_from, read_records
from data_pipeline.corpora.filters import TextRules
from data_pipeline.errors import DataError
from data_pipeline.files import (
    canonical_json,
    explaining,
    partial_path,
    read_json_object,
    readable_json,
    write_atomically,
)
from data_pipeline.progress import Work

UNIT_BYTES = 8 * 2**20

# One usable document: xxh3_128 of its text in two halves, xxh3_64 of its name, and its place.
ROW = np.dtype(
    [
        ("text_high", "<u8"),
        ("text_low", "<u8"),
        ("name", "<u8"),
        ("size_bytes", "<u8"),
        ("ordinal", "<u8"),
        ("offset_bytes", "<u8"),
        ("file", "<u4"),
    ]
)
Rows = npt.NDArray[Any]

_ROWS_AT_A_TIME = 2**16
_HASHED_CHARACTERS_AT_A_TIME = 2**20
_LOW = 2**64 - 1


@dataclass(frozen=True)
class ReadingOptions:
    """How the corpus is read.

    Attributes:
        text_field: Field or column with the text.
        name_field: Field or column with the name.
        rules: Normalisation and filters.
    """

    text_field: str
    name_field: str
    rules: TextRules = field(default_factory=TextRules)


class ScanUnit(NamedTuple):
    """A run of whole files, or a stretch of a single long `.jsonl` file.

    Attributes:
        first_file: Number of the first file.
        stop_file: Number behind the last one.
        start_bytes: Where the stretch begins, 0 for whole files.
        stop_bytes: Where it ends, or None for whole files.
        first_ordinal: Line ends before the stretch.
    """

    first_file: int
    stop_file: int
    start_bytes: int = 0
    stop_bytes: int | None = None
    first_ordinal: int = 0


@dataclass
class UnitScan:
    """What is known of a scanned unit beside its rows.

    Attributes:
        documents: Rows in its table.
        problems: (name, reason) of documents that cannot be used.
        filtered: Rule -> documents that it leaves out.
        checksum: xxh3_128 of the table, in hex.
    """

    documents: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)
    filtered: dict[str, int] = field(default_factory=dict)
    checksum: str = ""

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> UnitScan:
        """Out of what `vars` makes of it, through JSON."""
        problems = [(name, reason) for name, reason in value["problems"]]
        return cls(value["documents"], problems, value["filtered"], value["checksum"])


def scan_units(files: Sequence[CorpusFile], unit_bytes: int = UNIT_BYTES) -> list[ScanUnit]:
    """Divides the corpus into units of about `unit_bytes`; a compressed file is never divided."""
    units: list[ScanUnit] = []
    first, pending_bytes = 0, 0
    for number, file in enumerate(files):
        size_bytes = unit_bytes if file.size_bytes is None else file.size_bytes
        is_divided = file.suffix == ".jsonl" and size_bytes >= 2 * unit_bytes
        if first < number and (is_divided or pending_bytes + size_bytes > unit_bytes):
            units.append(ScanUnit(first, number))
            first, pending_bytes = number, 0
        if is_divided:
            edges = [*range(0, size_bytes - unit_bytes + 1, unit_bytes), size_bytes]
            units += [
                ScanUnit(number, number + 1, start, stop)
                for start, stop in itertools.pairwise(edges)
            ]
            first = number + 1
        else:
            pending_bytes += size_bytes
    if first < len(files):
        units.append(ScanUnit(first, len(files)))
    return units


def scan_unit(
    files: Sequence[CorpusFile],
    unit: ScanUnit,
    options: ReadingOptions,
    table: Path,
    report: Callable[[Work], None],
) -> UnitScan:
    """Reads one unit through and writes its table, unless an earlier run has written it.

    Args:
        files: The corpus.
        unit: What to read.
        options: How to read it.
        table: The table to write; the facts go beside it.
        report: Told of what has been read.

    Raises:
        DataError: If a file is corrupt as a whole, or the table cannot be written.
    """
    identity = _identity(files, unit, options)
    known = _known_scan(table, identity)
    if known is not None:
        report(Work(documents=known.documents))
        return known
    scan = UnitScan()
    checksum = xxhash.xxh3_128()
    with explaining("write", table), partial_path(table).open("wb") as stream:
        for rows in _scanned_rows(files, unit, options, scan, report):
            data = rows.tobytes()
            checksum.update(data)
            stream.write(data)
            scan.documents += len(rows)
    scan.checksum = checksum.hexdigest()
    with explaining("write", table):
        partial_path(table).replace(table)
    # The facts last: where they are, the table is, and its checksum tells whether all of it.
    write_atomically(
        table.with_suffix(".json"), readable_json({"identity": identity, "scan": vars(scan)})
    )
    return scan


def _identity(files: Sequence[CorpusFile], unit: ScanUnit, options: ReadingOptions) -> str:
    """Changes with all that the table depends on; empty where a file tells no version."""
    mine = files[unit.first_file : unit.stop_file]
    if not all(file.version for file in mine):
        return ""
    states = [[str(file.location), file.name, file.size_bytes, file.version] for file in mine]
    fields = [options.text_field, options.name_field, options.rules.to_json()]
    return hashlib.sha256(canonical_json([list(unit), states, fields])).hexdigest()


def _known_scan(table: Path, identity: str) -> UnitScan | None:
    facts = table.with_suffix(".json")
    if not identity or not facts.exists() or not table.exists():
        return None
    try:
        value = read_json_object(facts, "facts of a scan", "")
        if value.get("identity") != identity:
            return None
        scan = UnitScan.from_json(value["scan"])
    except (DataError, KeyError, TypeError, ValueError):
        return None
    if table.stat().st_size != scan.documents * ROW.itemsize:
        return None
    checksum = xxhash.xxh3_128()
    for rows in read_rows(table):
        checksum.update(rows.tobytes())
    return scan if checksum.hexdigest() == scan.checksum else None


def _scanned_rows(
    files: Sequence[CorpusFile],
    unit: ScanUnit,
    options: ReadingOptions,
    scan: UnitScan,
    report: Callable[[Work], None],
) -> Iterator[Rows]:
    rows: list[tuple[int, ...]] = []
    for number in range(unit.first_file, unit.stop_file):
        for record in _unit_records(files[number], unit, options):
            if record.text is None:
                scan.problems.append((record.name, record.problem or "unusable"))
                continue
            ruled = options.rules.apply(record.text, record.size_bytes)
            report(Work(ruled.size_bytes, 1))
            if ruled.text is None:
                scan.filtered[ruled.filtered_by] = scan.filtered.get(ruled.filtered_by, 0) + 1
                continue
            text = text_hash(ruled.text)
            place = (record.ordinal, record.offset_bytes, number)
            rows.append((text >> 64, text & _LOW, name_hash(record.name), ruled.size_bytes, *place))
            if len(rows) == _ROWS_AT_A_TIME:
                yield np.array(rows, ROW)
                rows.clear()
    if rows:
        yield np.array(rows, ROW)


def _unit_records(file: CorpusFile, unit: ScanUnit, options: ReadingOptions) -> Iterator[Record]:
    if unit.stop_bytes is None:
        return records_from(file, options)
    offset_bytes, reaches_in = first_line_from(file, unit.start_bytes)
    if offset_bytes >= unit.stop_bytes:
        return iter(())
    ordinal = unit.first_ordinal + reaches_in
    return records_from(file, options, ordinal, offset_bytes, unit.stop_bytes)


def records_from(
    file: CorpusFile,
    options: ReadingOptions,
    ordinal: int = 0,
    offset_bytes: int = 0,
    stop_bytes: int | None = None,
    wanted: Callable[[int], bool] | None = None,
) -> Iterator[Record]:
    """Reads a file from a position on; see `data_pipeline.corpora.corpus_files.read_records`."""
    return read_records(
        file,
        text_field=options.text_field,
        name_field=options.name_field,
        start_ordinal=ordinal,
        start_offset_bytes=offset_bytes,
        stop_offset_bytes=stop_bytes,
        wanted=wanted,
    )


def text_hash(text: str) -> int:
    """xxh3_128 of valid Unicode in UTF-8; a long text is never encoded as a whole."""
    if len(text) <= _HASHED_CHARACTERS_AT_A_TIME:
        return xxhash.xxh3_128_intdigest(text.encode())
    checksum = xxhash.xxh3_128()
    for start in range(0, len(text), _HASHED_CHARACTERS_AT_A_TIME):
        checksum.update(text[start : start + _HASHED_CHARACTERS_AT_A_TIME].encode())
    return checksum.intdigest()


def name_hash(name: str) -> int:
    """xxh3_64 of a name, by which `data_pipeline.corpora.corpus.is_heldout` decides too."""
    return xxhash.xxh3_64_intdigest(name_bytes(name))


def read_rows(table: Path) -> Iterator[Rows]:
    """Streams a table from the disk.

    Raises:
        DataError: If the system refuses.
    """
    with explaining("read", table), table.open("rb") as stream:
        while data := stream.read(_ROWS_AT_A_TIME * ROW.itemsize):
            yield np.frombuffer(data, ROW)


def corpus_fingerprint(tables: Sequence[Path], scans: Sequence[UnitScan]) -> str:
    """SHA-256 over names and texts of all documents in order, in hex; unusable ones count too."""
    digest = hashlib.sha256()
    for table in tables:
        for rows in read_rows(table):
            columns = [rows["text_high"], rows["text_low"], rows["name"]]
            digest.update(np.stack(columns, axis=1).tobytes())
    for scan in scans:
        digest.update(b"".join(canonical_json(problem) + b"\n" for problem in scan.problems))
        digest.update(canonical_json(scan.filtered) if scan.filtered else b"")
    return digest.hexdigest()
