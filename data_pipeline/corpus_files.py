"""Reading documents out of one corpus file, from its beginning or from a known position.

Four kinds of files are read: `.txt` (one document), `.jsonl` and `.jsonl.gz` (one JSON object a
line), `.parquet` (one row a document). A document that cannot be used comes out as a record with
a problem instead of a text, so that whoever reads decides what to do; a file that cannot be read
as a whole raises.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from data_pipeline.errors import DataError
from data_pipeline.files import explaining

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
# Bounds the memory of reading: a longer document is reported, not read.
MAXIMUM_DOCUMENT_BYTES = 2**30

_PARQUET_ROWS_AT_A_TIME = 64
_SKIPPED_BYTES_AT_A_TIME = 2**20


@dataclass(frozen=True)
class CorpusFile:
    """One file of a corpus.

    Attributes:
        path: Where it is.
        name: How it is called within the corpus: relative to the folder given, with "/".
    """

    path: Path
    name: str

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
    """

    ordinal: int
    offset_bytes: int
    name: str
    text: str | None
    problem: str | None


def read_records(
    file: CorpusFile,
    *,
    text_field: str,
    name_field: str,
    start_ordinal: int = 0,
    start_offset_bytes: int = 0,
) -> Iterator[Record]:
    """Streams the documents of one file.

    Args:
        file: The file; its suffix chooses the reader.
        text_field: Field of JSON objects, or column, that holds the text.
        name_field: Field or column that names the document; where it is missing or no string or
            integer, the name is FILE:NUMBER, counted from 1.
        start_ordinal: First line or row wanted.
        start_offset_bytes: Where that line begins (`.jsonl` only, others ignore it).

    Yields:
        Records in the order of the file.

    Raises:
        DataError: If the file is missing, unreadable or corrupt as a whole.
    """
    if file.suffix == ".txt":
        records = _read_text(file)
    elif file.suffix == ".parquet":
        records = _read_parquet(file, text_field, name_field, start_ordinal)
    elif file.suffix == ".jsonl":
        records = _read_lines(file, text_field, name_field, start_ordinal, start_offset_bytes)
    elif file.suffix == ".jsonl.gz":
        records = _read_lines(file, text_field, name_field, start_ordinal, 0)
    else:
        raise DataError(
            f"{file.path} is no corpus file: its name must end in {', '.join(SUFFIXES)}"
        )
    with explaining("read", file.path):
        yield from records


def _read_text(file: CorpusFile) -> Iterator[Record]:
    text, problem = None, None
    if file.path.stat().st_size > MAXIMUM_DOCUMENT_BYTES:
        problem = _too_long()
    else:
        data = file.path.read_bytes()
        text, problem = _decode(data, first=True)
        # A long document would otherwise stay in memory twice while its text is used.
        del data
    yield _checked(0, 0, file.name, text, problem)


def _read_lines(
    file: CorpusFile, text_field: str, name_field: str, start_ordinal: int, offset_bytes: int
) -> Iterator[Record]:
    with _open_lines(file) as stream:
        try:
            ordinal = start_ordinal
            if offset_bytes:
                stream.seek(offset_bytes)
            else:
                for _ in range(start_ordinal):
                    _, length_bytes = _read_line(stream)
                    offset_bytes += length_bytes
            while True:
                line, length_bytes = _read_line(stream)
                if length_bytes == 0:
                    return
                record = None
                if line is None:
                    name = _fallback(file, ordinal)
                    record = Record(ordinal, offset_bytes, name, None, _too_long())
                elif not line.isspace():
                    record = _parse_line(file, line, text_field, name_field, ordinal, offset_bytes)
                # A long line must not stay in memory while its text is used.
                del line
                if record is not None:
                    yield record
                ordinal += 1
                offset_bytes += length_bytes
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(
                f"{file.path} is a corrupt gzip file ({error}, line {ordinal + 1}): "
                "copy or download it again"
            ) from error


def _open_lines(file: CorpusFile) -> BinaryIO:
    if file.suffix == ".jsonl":
        return file.path.open("rb", buffering=2**20)
    # GzipFile hands out small pieces: a buffer around it makes line reading several times faster.
    return io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(file.path, "rb")), 2**20)


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
    file: CorpusFile,
    line: bytes,
    text_field: str,
    name_field: str,
    ordinal: int,
    offset_bytes: int,
) -> Record:
    name = _fallback(file, ordinal)
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
        fields = ", ".join(sorted(value)[:8])
        problem = f"no string field {text_field!r} (fields: {fields})"
        return Record(ordinal, offset_bytes, name, None, problem)
    return _checked(ordinal, offset_bytes, name, text, None)


def _read_parquet(
    file: CorpusFile, text_field: str, name_field: str, start_ordinal: int
) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file.path) as parquet:
            columns = _parquet_columns(file, parquet.schema_arrow, text_field, name_field)
            ordinal = 0
            for group in range(parquet.num_row_groups):
                group_rows = parquet.metadata.row_group(group).num_rows
                if ordinal + group_rows <= start_ordinal:
                    ordinal += group_rows
                    continue
                for batch in parquet.iter_batches(
                    batch_size=_PARQUET_ROWS_AT_A_TIME, row_groups=[group], columns=columns
                ):
                    for name, data in _parquet_rows(batch, text_field, name_field):
                        if ordinal >= start_ordinal:
                            yield _parquet_record(file, ordinal, name, data)
                        ordinal += 1
    except pyarrow.ArrowException as error:
        raise DataError(
            f"{file.path} is a corrupt parquet file ({error}): copy or download it again"
        ) from error


def _parquet_columns(file: CorpusFile, schema: Any, text_field: str, name_field: str) -> list[str]:
    import pyarrow

    if text_field not in schema.names:
        raise DataError(
            f"{file.path} has no column {text_field!r} (columns: {', '.join(schema.names[:8])}): "
            "name the text column with text_field"
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
            f"{file.path}: column {text_field!r} holds {kind}, not strings: "
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
    if text is not None:
        if not text:
            text, problem = None, "empty"
        elif utf8_bytes(text) is None:
            text, problem = None, "no valid Unicode (a lone surrogate)"
    return Record(ordinal, offset_bytes, name, text, problem)


def utf8_bytes(text: str) -> int | None:
    """Length of `text` in UTF-8, or None where it holds a lone surrogate; in bounded memory."""
    if text.isascii():
        return len(text)
    total_bytes = 0
    for start in range(0, len(text), _SKIPPED_BYTES_AT_A_TIME):
        try:
            total_bytes += len(text[start : start + _SKIPPED_BYTES_AT_A_TIME].encode())
        except UnicodeEncodeError:
            return None
    return total_bytes


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
