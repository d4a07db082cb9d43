"""Reading TSV and JSON lines: every cell as it stands, every mistake with its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import FinetuneError
from finetune.tables import read_table

CELL = st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"]), min_size=1)


@given(rows=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5), zipped=st.booleans())
def test_cells_come_back_whatever_stands_in_them(
    rows: list[tuple[str, str]], zipped: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Quotes, line separators of Unicode and control characters are text like any other."""
    folder = tmp_path_factory.mktemp("tables")
    tsv = "a\tb\n" + "".join(f"{a}\t{b}\n" for a, b in rows)
    lines = "".join(json.dumps({"b": b, "a": a}) + "\n" for a, b in rows)
    for name, text in (("t.tsv", tsv), ("t.jsonl", lines)):
        path = folder / (name + (".gz" if zipped else ""))
        data = text.encode()
        path.write_bytes(gzip.compress(data) if zipped else data)
        table = read_table(path, ["a"], ["b", "c"])
        assert [(row.cells["a"], row.cells["b"]) for row in table.rows] == rows
        assert table.columns == {"a", "b"}


def test_windows_line_ends_and_a_byte_order_mark_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"\xef\xbb\xbfQuality\ttext\r\n1\tone\r\n\r\n0\ttwo\r\n")
    table = read_table(path, ["Quality", "text"])
    assert [row.cells for row in table.rows] == [
        {"Quality": "1", "text": "one"},
        {"Quality": "0", "text": "two"},
    ]
    assert [row.line for row in table.rows] == [2, 4]


def test_columns_are_named_by_the_user_where_there_is_no_header(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("fine\t1\nbad\t0\n")
    table = read_table(path, ["sentence"], ["label"], names=["sentence", "label"])
    assert table.rows[0].cells == {"sentence": "fine", "label": "1"}


def test_short_rows_are_counted_where_that_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("a\tb\n1\t2\nbroken\n3\t4\n")
    table = read_table(path, ["a", "b"], leave_out_short_rows=True)
    assert (len(table.rows), table.short_rows) == (2, 1)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("t.tsv", b"", "no column 'a' (found: )"),
        ("t.tsv", b"a\tb\n", "holds no rows"),
        ("t.jsonl", b"\n\n", "holds no rows"),
        ("t.tsv", b"a\tb\n1\t2\n1\t2\t3\n", "line 3: has 3 cells instead of 2"),
        ("t.tsv", b"a\tb\n1\t2\n1\n", "line 3: has 1 cells instead of 2"),
        ("t.tsv", b"x\ty\n1\t2\n", "no column 'a' (found: x, y)"),
        ("t.tsv", b"a\ta\tb\n1\t2\t3\n", "two columns are named 'a'"),
        ("t.tsv", b"a\tb\n1\t\xff\n", "line 2: not UTF-8"),
        ("t.jsonl", b'{"a": "1", "b": "2"}\n{"a": \n', "line 2: not JSON"),
        ("t.jsonl", b'{"a": "1", "b": "2"}\n[]\n', "line 2: JSON, but no object"),
        ("t.jsonl", b'{"a": "1", "b": "2"}\n{"b": "2"}\n', "line 2: no column 'a'"),
        ("t.jsonl", b'{"a": "1", "b": null}\n', "line 1: column 'b' is null"),
        ("t.jsonl", b'{"a": "1", "b": true}\n', "line 1: column 'b' is true or false"),
        ("t.jsonl", b'{"a": ["1"], "b": 1}\n', "line 1: column 'a' is a list"),
        ("t.jsonl", b'{"a": "1", "b": 1}\n{"a": "1"}\n', "'b' is in some rows and not in others"),
        ("t.jsonl", b'{"a":' * 100_000, "line 1: not JSON"),
        ("t.tsv.gz", b"no gzip", "damaged gzip file"),
        ("t.tsv.gz", gzip.compress(b"a\tb\n1\t2\n" * 999)[:-20], "damaged gzip file"),
        ("t.csv", b"a,b\n1,2\n", "rename it"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FinetuneError) as caught:
        read_table(path, ["a"], ["b"])
    assert complaint in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_of_json_are_text_as_written(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": 1}\n{"a": 2.50}\n{"a": -3e2}\n')
    assert [row.cells["a"] for row in read_table(path, ["a"]).rows] == ["1", "2.5", "-300.0"]


def test_names_are_refused_for_json(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": 1}\n')
    with pytest.raises(FinetuneError, match="JSON lines name their columns"):
        read_table(path, ["a"], names=["a"])
