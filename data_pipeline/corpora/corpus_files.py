"""Reading documents out of one corpus file, from its beginning or from a known position.

These kinds of files are read: `.txt` (one document), `.jsonl`, `.jsonl.gz` and `.jsonl.zst` (one
JSON object a line), `.parquet` (one row a document). A document that cannot be used comes out as a
record with a problem instead of a text, so that whoever reads decides what to do; a file that
cannot be read as a whole raises.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, cast

import orjson

from data_pipeline.corpora.corpus_locations import Location, open_location
from data_pipeline.corpora.utf8 import utf8_bytes
from data_pipeline.corpora.zstandard_reader import ZstandardReader
from data_pipeline.errors import DataError
from data_pipeline.files import explaining

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
# Bounds the memory of reading: a longer document is reported, not read.
MAXIMUM_DOCUMENT_BYTES = 2**30

_PARQUET_ROWS_AT_A_TIME = 64
_SKIPPED_BYTES_AT_A_TIME = 2**20
_BUFFER_BYTES = 2**20


@dataclass(frozen=True)
class CorpusFile:
    """One file of a corpus.

    Attributes:
        location: Where it is: a path, or a URL as text.
        name: How it is called within the corpus: relative to the folder given, with "/".
        source: Number of the input that it was found under.
        size_bytes: Its length, or None where it is not known.
        version: Changes when the file does; empty where nothing is known.
    """

    location: Location
    name: str
    source: int = 0
    size_bytes: int | None = None
    version: str = ""

    @property
    def suffix(self) -> str:
        """The entry of `SUFFIXES` the name ends in, or an empty string."""
        lowered = self.name.lower()
        return next((suffix for suffix in SUFFIXES if lowered.endswith(suffix)), "")


class Record(NamedTuple):
    """One document of a file, or the reason why it cannot be used.

    Attributes:
        ordinal: Line or row number from 0 (blank lines count).
        offset_bytes: Where the line begins in an uncompressed file, else 0.
        name: The document's name.
        text: Its text, or None where `problem` says why not.
        problem: What is wrong with it, or None.
        size_bytes: Length of the text in UTF-8, 0 without one.
    """

    ordinal: int
    offset_bytes: int
    name: str
    text: str | None
    problem: str | None
    size_bytes: int = 0


def read_records(
    file: CorpusFile,
    *,
    text_field: str,
    name_field: str,
    start_ordinal: int = 0,
    start_offset_bytes: int = 0,
    stop_offset_bytes: int | None = None,
    wanted: Callable[[int], bool] | None = None,
) -> Iterator[Record]:
    """Streams the documents of one file.

    Args:
        file: The file; its suffix chooses the reader.
        text_field: Field of JSON objects, or column, that holds the text.
        name_field: Field or column that names the document; where it is missing or no string or
            integer, the name is FILE:NUMBER, counted from 1.
        start_ordinal: First line or row wanted.
        start_offset_bytes: Where that line begins (`.jsonl` only, others ignore it).
        stop_offset_bytes: Lines that begin there or behind are left out (`.jsonl` only).
        wanted: Whether the line or row of a number is wanted; others are passed by unread.

    Yields:
        Records in the order of the file.

    Raises:
        DataError: If the file is missing, unreadable or corrupt as a whole.
    """
    fields = (text_field, name_field)
    wanted = wanted or _everything
    if file.suffix == ".txt":
        records = _read_text(file)
    elif file.suffix == ".parquet":
        records = _read_parquet(file, fields, start_ordinal, wanted)
    elif file.suffix == ".jsonl":
        bounds = (start_offset_bytes, stop_offset_bytes)
        records = _read_lines(file, fields, start_ordinal, bounds, wanted)
    elif file.suffix:
        records = _read_lines(file, fields, start_ordinal, (0, None), wanted)
    else:
        raise DataError(
            f"{file.location} is no corpus file: its name must end in {', '.join(SUFFIXES)}"
        )
    with explaining("read", file.location):
        yield from records


def _everything(_ordinal: int) -> bool:
    return True


def count_line_ends(file: CorpusFile, start_bytes: int, stop_bytes: int) -> int:
    """Number of line ends among the bytes of a `.jsonl` file from `start_bytes` to `stop_bytes`."""
    count = 0
    with explaining("read", file.location), open_location(file.location) as stream:
        stream.seek(start_bytes)
        while start_bytes < stop_bytes:
            data = stream.read(min(_BUFFER_BYTES, stop_bytes - start_bytes))
            if not data:
                break
            count += data.count(b"\n")
            start_bytes += len(data)
    return count


def first_line_from(file: CorpusFile, offset_bytes: int) -> tuple[int, bool]:
    """Where the first line begins that does not begin before `offset_bytes` of a `.jsonl` file.

    Returns:
        Its offset, and whether a line that began before reaches beyond `offset_bytes`.
    """
    if offset_bytes == 0:
        return 0, False
    with explaining("read", file.location), open_location(file.location) as stream:
        stream.seek(offset_bytes - 1)
        _, length_bytes = _read_line(stream)
    return offset_bytes - 1 + length_bytes, length_bytes > 1


def _read_text(file: CorpusFile) -> Iterator[Record]:
    text, problem = None, None
    with open_location(file.location) as stream:
        data = stream.read(MAXIMUM_DOCUMENT_BYTES + 1)
    if len(data) > MAXIMUM_DOCUMENT_BYTES:
        problem = _too_long()
    else:
        text, problem = _decode(data, first=True)
    # A long document would otherwise stay in memory twice while its text is used.
    del data
    yield _checked(0, 0, file.name, text, problem)


def _read_lines(
    file: CorpusFile,
    fields: tuple[str, str],
    start_ordinal: int,
    bounds_bytes: tuple[int, int | None],
    wanted: Callable[[int], bool],
) -> Iterator[Record]:
    offset_bytes, stop_bytes = bounds_bytes
    ordinal = start_ordinal
    with _open_lines(file) as stream, _naming_damage(file):
        if offset_bytes:
            stream.seek(offset_bytes)
        else:
            for _ in range(start_ordinal):
                _, length_bytes = _read_line(stream)
                offset_bytes += length_bytes
        while stop_bytes is None or offset_bytes < stop_bytes:
            line, length_bytes = _read_line(stream)
            if length_bytes == 0:
                return
            record = None
            if not wanted(ordinal):
                pass
            elif line is None:
                name = _fallback(file, ordinal)
                record = Record(ordinal, offset_bytes, name, None, _too_long())
            elif not line.isspace():
                record = _parse_line(file, line, fields, ordinal, offset_bytes)
            # A long line must not stay in memory while its text is used.
            del line
            if record is not None:
                yield record
            ordinal += 1
            offset_bytes += length_bytes


@contextlib.contextmanager
def _naming_damage(file: CorpusFile) -> Iterator[None]:
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        kind = "zstandard" if file.suffix == ".jsonl.zst" else "gzip"
        raise DataError(
            f"{file.location} is a corrupt {kind} file ({error}): copy or download it again"
        ) from error


@contextlib.contextmanager
def _open_lines(file: CorpusFile) -> Iterator[BinaryIO]:
    with open_location(file.location) as stream:
        if file.suffix == ".jsonl":
            yield stream
        elif file.suffix == ".jsonl.zst":
            yield io.BufferedReader(ZstandardReader(stream), _BUFFER_BYTES)
        else:
            # GzipFile hands out small pieces: a buffer around it makes reading lines several times
            # faster.
            unpacked = gzip.GzipFile(fileobj=stream, mode="rb")
            yield io.BufferedReader(cast(io.RawIOBase, unpacked), _BUFFER_BYTES)


def _read_line(stream: BinaryIO) -> tuple[bytes | None, int]:
    """The next line (None if it is too long to read) and its length in bytes, 0 at the end."""
    line = stream.readline(MAXIMUM_DOCUMENT_BYTES + 1)
    length_bytes = len(line)
    if length_bytes <= MAXIMUM_DOCUMENT_BYTES:
        return line, length_bytes
    while line and not line.endswith(b"\n"):
        line = stream.readline(_SKIPPED_BYTES_AT_A_TIME)
        length_bytes += len(line)
    return None, length_bytes


def _parse_line(
    file: CorpusFile, line: bytes, fields: tuple[str, str], ordinal: int, offset_bytes: int
) -> Record:
    text_field, name_field = fields
    name = _fallback(file, ordinal)
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        # The slower parser takes a little more (a byte order mark, long integers, NaN), and says
        # what is wrong with the rest.
        decoded, problem = _decode(line, first=ordinal == 0)
        if decoded is None:
            return Record(ordinal, offset_bytes, name, None, problem)
        try:
            value = json.loads(decoded)
        except (ValueError, RecursionError) as error:
            return Record(ordinal, offset_bytes, name, None, f"no valid JSON ({error})")
    if not isinstance(value, dict):
        return Record(ordinal, offset_bytes, name, None, "no JSON object")
    name = _name(value.get(name_field), name)
    text = value.get(text_field)
    if not isinstance(text, str):
        found = ", ".join(sorted(value)[:8])
        problem = f"no string field {text_field!r} (fields: {found})"
        return Record(ordinal, offset_bytes, name, None, problem)
    return _checked(ordinal, offset_bytes, name, text, None)


def _read_parquet(
    file: CorpusFile,
    fields: tuple[str, str],
    start_ordinal: int,
    wanted: Callable[[int], bool],
) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        with (
            open_location(file.location) as stream,
            pyarrow.parquet.ParquetFile(stream) as parquet,
        ):
            columns = _parquet_columns(file, parquet.schema_arrow, *fields)
            ordinal = 0
            for group in range(parquet.num_row_groups):
                group_rows = parquet.metadata.row_group(group).num_rows
                if ordinal + group_rows <= start_ordinal:
                    ordinal += group_rows
                    continue
                for batch in parquet.iter_batches(
                    batch_size=_PARQUET_ROWS_AT_A_TIME, row_groups=[group], columns=columns
                ):
                    for name, data in _parquet_rows(batch, *fields):
                        if ordinal >= start_ordinal and wanted(ordinal):
                            yield _parquet_record(file, ordinal, name, data)
                        ordinal += 1
    except pyarrow.ArrowException as error:
        raise DataError(
            f"{file.location} is a corrupt parquet file ({error}): copy or download it again"
        ) from error


def _parquet_columns(file: CorpusFile, schema: Any, text_field: str, name_field: str) -> list[str]:
    import pyarrow

    if text_field not in schema.names:
        raise DataError(
            f"{file.location} has no column {text_field!r} (columns: "
            f"{', '.join(schema.names[:8])}): name the text column with text_field"
        )
    kind = schema.field(text_field).type
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    readable = (
        pyarrow.types.is_string,
        pyarrow.types.is_large_string,
        pyarrow.types.is_binary,
        pyarrow.types.is_large_binary,
    )
    if not any(is_kind(kind) for is_kind in readable):
        raise DataError(
            f"{file.location}: column {text_field!r} holds {kind}, not strings: "
            "name the text column with text_field"
        )
    return [text_field] + ([name_field] if name_field in schema.names else [])


def _parquet_rows(batch: Any, text_field: str, name_field: str) -> Iterator[tuple[Any, Any]]:
    import pyarrow

    texts = batch.column(text_field)
    if pyarrow.types.is_dictionary(texts.type):
        texts = texts.dictionary_decode()
    # As bytes, so that one invalid string does not make the whole batch unreadable.
    texts = texts.cast(pyarrow.large_binary())
    if name_field in batch.schema.names:
        names = batch.column(name_field)
    else:
        names = [None] * batch.num_rows
    for index in range(batch.num_rows):
        try:
            name = names[index].as_py() if names[index] is not None else None
        except UnicodeDecodeError:
            name = None
        yield name, texts[index].as_py()


def _parquet_record(file: CorpusFile, ordinal: int, name: Any, data: bytes | None) -> Record:
    text: str | None = None
    problem: str | None = "no text (null)"
    if data is not None and len(data) > MAXIMUM_DOCUMENT_BYTES:
        problem = _too_long()
    elif data is not None:
        text, problem = _decode(data, first=False)
    return _checked(ordinal, 0, _name(name, _fallback(file, ordinal)), text, problem)


def _decode(data: bytes, *, first: bool) -> tuple[str | None, str | None]:
    try:
        # A byte order mark at the beginning of a file is no part of its text.
        return data.decode("utf-8-sig" if first else "utf-8"), None
    except UnicodeDecodeError as error:
        return None, f"no valid UTF-8 ({error.reason} at byte {error.start})"


def _checked(
    ordinal: int, offset_bytes: int, name: str, text: str | None, problem: str | None
) -> Record:
    size_bytes = 0
    if text is not None:
        measured_bytes = utf8_bytes(text)
        if not text:
            text, problem = None, "empty"
        elif measured_bytes is None:
            text, problem = None, "no valid Unicode (a lone surrogate)"
        else:
            size_bytes = measured_bytes
    return Record(ordinal, offset_bytes, name, text, problem, size_bytes)


def _name(value: Any, fallback: str) -> str:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return fallback


def _fallback(file: CorpusFile, ordinal: int) -> str:
    return f"{file.name}:{ordinal + 1}"


def _too_long() -> str:
    return f"longer than {MAXIMUM_DOCUMENT_BYTES} bytes: split it into several documents"
