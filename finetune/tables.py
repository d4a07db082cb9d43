"""Rows of text files with named columns: TSV as GLUE has it, and JSON lines; gzip or not.

TSV here knows no quotes: a cell ends at a tab and a row at a line feed, whatever stands between.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError

_TSV = (".tsv", ".txt")
_JSONL = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Row:
    """What was asked for of one row."""

    line: int
    """In the file, from 1."""
    cells: dict[str, str]
    """By column; numbers of JSON as they are written."""


@dataclass(frozen=True)
class Table:
    """A file's rows."""

    path: Path
    rows: list[Row]
    columns: frozenset[str]
    """Those of the required and optional columns that it has."""
    short_rows: int
    """Rows that were left out because they lack cells."""


def read_table(
    path: Path,
    required: Sequence[str],
    optional: Collection[str] = (),
    *,
    names: Sequence[str] | None = None,
    leave_out_short_rows: bool = False,
) -> Table:
    """Read the columns that are needed.

    Args:
        path: ``.tsv``, ``.txt`` or ``.jsonl``, or one of these with ``.gz`` behind it.
        required: Columns that must be there.
        optional: Columns that all rows have, or none.
        names: Column names of a TSV file whose first line is a row already; None: the first line
            names the columns.
        leave_out_short_rows: Count rows of a TSV file that lack cells instead of refusing them.

    Raises:
        FinetuneError: A column is missing, there are no rows, or a line is damaged; with its
            number.
        OSError: The file cannot be read.
    """
    kind = _kind(path)
    if kind in _TSV:
        table = _read_tsv(path, required, optional, names, leave_out_short_rows)
    elif kind in _JSONL:
        if names is not None:
            raise FinetuneError(f"{path}: JSON lines name their columns; leave out the names")
        table = _read_jsonl(path, required, optional)
    else:
        raise FinetuneError(
            f"{path}: the name ends in none of {', '.join(_TSV + _JSONL)} (with .gz or without); "
            "rename it to what it holds"
        )
    if not table.rows:
        raise FinetuneError(f"{path}: holds no rows; give a file with data")
    return table


def is_json(path: Path) -> bool:
    """Whether a file's name is that of JSON lines."""
    return _kind(path) in _JSONL


def first_cells(path: Path) -> list[str]:
    """Return the cells of the first line of a TSV file.

    Raises:
        FinetuneError: The line is damaged.
        OSError: The file cannot be read.
    """
    _, line = next(_lines(path), (1, ""))
    return line.split("\t")


def _kind(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield numbered lines without their ends, empty ones left out."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                # Text editors may put a mark before the first character.
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                text = text.removesuffix("\n").removesuffix("\r")
                if text:
                    yield number, text
    except UnicodeDecodeError as error:
        raise FinetuneError(
            f"{path}, line {number}: not UTF-8 ({error.reason}); convert the file"
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise FinetuneError(f"{path}: damaged gzip file ({error}); make it again") from error


def _read_tsv(
    path: Path,
    required: Sequence[str],
    optional: Collection[str],
    names: Sequence[str] | None,
    leave_out_short_rows: bool,
) -> Table:
    lines = _lines(path)
    if names is None:
        _, first = next(lines, (1, ""))
        header = first.split("\t")
    else:
        header = list(names)
    wanted = _places(path, header, required, optional, named_by_user=names is not None)
    rows, short_rows = [], 0
    for number, line in lines:
        cells = line.split("\t")
        if len(cells) < len(header) and leave_out_short_rows:
            short_rows += 1
            continue
        if len(cells) != len(header):
            raise FinetuneError(
                f"{path}, line {number}: has {len(cells)} cells instead of {len(header)}; mend the "
                "line (TSV has no quotes: a tab always ends a cell)"
            )
        rows.append(Row(number, {column: cells[place] for column, place in wanted.items()}))
    return Table(path, rows, frozenset(wanted), short_rows)


def _places(
    path: Path,
    header: list[str],
    required: Sequence[str],
    optional: Collection[str],
    *,
    named_by_user: bool,
) -> dict[str, int]:
    """Where each wanted column stands."""
    twice = [name for name in header if header.count(name) > 1]
    if twice and twice[0] in {*required, *optional}:
        raise FinetuneError(f"{path}: two columns are named {twice[0]!r}; rename one")
    for name in required:
        if name not in header:
            found = ", ".join(header)[:200]
            remedy = "name it" if named_by_user else "name the columns if the first line is a row"
            raise FinetuneError(f"{path}: no column {name!r} (found: {found}); {remedy}")
    return {name: header.index(name) for name in (*required, *optional) if name in header}


def _read_jsonl(path: Path, required: Sequence[str], optional: Collection[str]) -> Table:
    rows: list[Row] = []
    columns: frozenset[str] | None = None
    for number, line in _lines(path):
        place = f"{path}, line {number}"
        record = _parse(place, line)
        for name in required:
            if name not in record:
                found = ", ".join(map(str, record))[:200]
                raise FinetuneError(f"{place}: no column {name!r} (found: {found}); add it")
        present = frozenset(name for name in (*required, *optional) if name in record)
        if columns is None:
            columns = present
        elif present != columns:
            name = min(present ^ columns)
            raise FinetuneError(
                f"{place}: column {name!r} is in some rows and not in others; add or remove it"
            )
        cells = {name: _cell(place, name, record[name]) for name in present}
        rows.append(Row(number, cells))
    return Table(path, rows, columns or frozenset(), 0)


def _parse(place: str, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FinetuneError(f"{place}: not JSON ({error}); write one object a line") from error
    if not isinstance(record, dict):
        raise FinetuneError(f"{place}: JSON, but no object; write one object a line")
    return record


def _cell(place: str, name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return json.dumps(value)
    kind = {type(None): "null", bool: "true or false", list: "a list", dict: "an object"}
    raise FinetuneError(f"{place}: column {name!r} is {kind[type(value)]}; write text or a number")
