"""Corpora: every format gives the same documents, and nothing bad passes or is lost silently."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.corpora import corpus_files
from data_pipeline.corpora.corpus import (
    Problem,
    find_files,
    is_heldout,
    iterate_documents,
    write_standard_library_corpus,
)
from data_pipeline.corpora.corpus_files import CorpusFile, read_records
from data_pipeline.corpora.utf8 import utf8_bytes
from data_pipeline.errors import DataError

SHARED = Path(os.environ.get("SPADE_SHARED", Path(__file__).parents[3] / "shared"))
DOCUMENTS = [
    ("a", "first\nline\r\nand\tmore\n"),
    ("b", "żółć 日本 \U0001f600"),
    ("7", " "),
    ("c", "\x00 \u2028 \x85"),
]


def write_jsonl(path: Path, documents: list[tuple[Any, Any]]) -> Path:
    lines = [json.dumps({"id": name, "text": text}) + "\n" for name, text in documents]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def write_parquet(path: Path, names: list[Any], texts: Any, **options: Any) -> Path:
    pyarrow.parquet.write_table(pyarrow.table({"id": names, "text": texts}), path, **options)
    return path


def read_all(*paths: Path, **options: Any) -> tuple[list[tuple[str, str]], list[Problem]]:
    problems: list[Problem] = []
    documents = iterate_documents(paths, on_problem=problems.append, **options)
    return [(document.name, document.text) for document in documents], problems


def test_every_format_gives_the_same_documents(tmp_path: Path) -> None:
    plain = write_jsonl(tmp_path / "d.jsonl", DOCUMENTS)
    zipped = tmp_path / "d.jsonl.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    names, texts = [name for name, _ in DOCUMENTS], [text for _, text in DOCUMENTS]
    columns = [
        pyarrow.array(texts),
        pyarrow.array(texts, pyarrow.large_string()),
        pyarrow.array([text.encode() for text in texts], pyarrow.binary()),
        pyarrow.array(texts).dictionary_encode(),
    ]
    tables = [
        write_parquet(tmp_path / f"{number}.parquet", names, column, row_group_size=3)
        for number, column in enumerate(columns)
    ]
    for path in (plain, zipped, *tables):
        assert read_all(path) == (DOCUMENTS, []), path


def test_a_text_file_is_one_document_byte_for_byte(tmp_path: Path) -> None:
    for name, text in DOCUMENTS:
        (tmp_path / f"{name}.txt").write_bytes(text.encode())
        assert read_all(tmp_path / f"{name}.txt") == ([(f"{name}.txt", text)], [])


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "world"}')
    assert read_all(tmp_path) == ([("a.txt", "hello"), ("b.jsonl:1", "world")], [])


def test_folders_are_searched_and_sorted(tmp_path: Path) -> None:
    for name in ("b/z.txt", "b/a.TXT", "a.txt", "B.txt", ".hidden.txt", ".git/x.txt", "b/c.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    files, num_ignored = find_files([tmp_path])
    assert [file.name for file in files] == ["B.txt", "a.txt", "b/a.TXT", "b/z.txt"]
    assert num_ignored == 1
    assert [
        file.name for file in find_files([tmp_path / "b" / "z.txt", tmp_path / "a.txt"])[0]
    ] == [
        "z.txt",
        "a.txt",
    ]


def test_names_fall_back_to_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(
        '{"id": 12, "text": "a"}\n\n{"id": null, "text": "b"}\n{"id": true, "text": "c"}\n'
        '{"id": "", "text": "d"}\n{"text": "e"}'
    )
    names = ["12", "d.jsonl:3", "d.jsonl:4", "d.jsonl:5", "d.jsonl:6"]
    assert [name for name, _ in read_all(path)[0]] == names
    table = write_parquet(tmp_path / "d.parquet", [3, None], ["a", "b"])
    assert [name for name, _ in read_all(table)[0]] == ["3", "d.parquet:2"]
    fields = {"text_field": "id", "name_field": "text"}
    with pytest.raises(DataError, match=r"the first, 'a': no string field 'id' \(fields: id, text"):
        read_all(path, **fields)


BAD_LINES = {
    b"\xff\xfe{}": "no valid UTF-8",
    b'{"text": "\xc3("}': "no valid UTF-8",
    b"{": "no valid JSON",
    b"[" * 100_000: "no valid JSON",
    b'{"text": 1' + b"0" * 5000 + b"}": "no valid JSON",
    b"[1]": "no JSON object",
    b'"text"': "no JSON object",
    b'{"body": "x"}': "no string field 'text' (fields: body)",
    b'{"text": null}': "no string field 'text'",
    b'{"text": ""}': "empty",
    b'{"text": "\\ud800"}': "lone surrogate",
}


def test_bad_lines_are_reported_and_do_not_stop_the_others(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    good = b'{"id": "good", "text": "x"}'
    path.write_bytes(b"\n".join([good, *BAD_LINES, good]))
    documents, problems = read_all(path)
    assert documents == [("good", "x")] * 2
    assert [problem.name for problem in problems] == [
        f"d.jsonl:{number}" for number in range(2, len(BAD_LINES) + 2)
    ]
    for problem, expected in zip(problems, BAD_LINES.values(), strict=True):
        assert expected in problem.reason


def test_bad_files_of_other_formats_are_reported(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"ok \x80")
    (tmp_path / "b.txt").write_bytes(b"")
    texts = pyarrow.array([b"fine", b"\xff", None, b""], pyarrow.binary())
    # Stored as strings, as a careless writer would have done it.
    texts = pyarrow.Array.from_buffers(pyarrow.string(), 4, texts.buffers())
    write_parquet(tmp_path / "c.parquet", ["1", "2", "3", "4"], texts)
    documents, problems = read_all(tmp_path)
    assert documents == [("1", "fine")]
    reasons = [(problem.name, problem.reason) for problem in problems]
    assert reasons == [
        ("a.txt", "no valid UTF-8 (invalid start byte at byte 3)"),
        ("b.txt", "empty"),
        ("2", "no valid UTF-8 (invalid start byte at byte 0)"),
        ("3", "no text (null)"),
        ("4", "empty"),
    ]


def test_by_default_problems_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [("a", "x"), ("b", None)])
    with caplog.at_level(logging.WARNING):
        assert len(list(iterate_documents([path]))) == 1
    assert "skipped 'b': no string field 'text'" in caplog.text


@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_read_or_reported(tmp_path: Path, data: bytes) -> None:
    for name in ("x.txt", "x.jsonl"):
        (tmp_path / name).write_bytes(data)
        for record in read_records(
            CorpusFile(tmp_path / name, name), text_field="text", name_field="id"
        ):
            assert (record.text is None) == (record.problem is not None)


def test_long_documents_are_reported_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 100
    monkeypatch.setattr(corpus_files, "MAXIMUM_DOCUMENT_BYTES", limit)
    monkeypatch.setattr(corpus_files, "_SKIPPED_BYTES_AT_A_TIME", 7)
    path = tmp_path / "d.jsonl"
    frame = len(json.dumps({"text": ""})) + 1
    lengths = [1, limit - frame, limit - frame + 1, limit - frame + 7, 5000, 2]
    path.write_text("".join(json.dumps({"text": "x" * length}) + "\n" for length in lengths))
    documents, problems = read_all(path)
    assert [len(text) for _, text in documents] == [1, limit - frame, 2]
    assert [problem.name for problem in problems] == [f"d.jsonl:{number}" for number in (3, 4, 5)]
    assert all("longer than 100 bytes" in problem.reason for problem in problems)
    (tmp_path / "d.txt").write_text("x" * (limit + 1))
    (tmp_path / "e.txt").write_text("x" * limit)
    documents, problems = read_all(tmp_path / "d.txt", tmp_path / "e.txt")
    assert [name for name, _ in documents] == ["e.txt"]
    assert [problem.name for problem in problems] == ["d.txt"]


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=8), min_size=1, max_size=30),
    blanks=st.lists(st.booleans(), min_size=30, max_size=30),
    group_rows=st.integers(1, 10),
)
def test_reading_can_begin_anywhere(
    tmp_path: Path, texts: list[str], blanks: list[bool], group_rows: int
) -> None:
    lines = b"".join(
        json.dumps({"text": text}, ensure_ascii=False).encode() + (b"\n\n" if blank else b"\n")
        for text, blank in zip(texts, blanks, strict=False)
    )
    (tmp_path / "d.jsonl").write_bytes(lines)
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(lines, 1))
    write_parquet(tmp_path / "d.parquet", texts, texts, row_group_size=group_rows)
    for name in ("d.jsonl", "d.jsonl.gz", "d.parquet"):
        file = CorpusFile(tmp_path / name, name)
        fields = {"text_field": "text", "name_field": "id"}
        everything = list(read_records(file, **fields))
        assert [record.text or "" for record in everything] == texts
        for index, record in enumerate(everything):
            rest = read_records(
                file,
                **fields,
                start_ordinal=record.ordinal,
                start_offset_bytes=record.offset_bytes,
            )
            assert list(rest) == everything[index:]


def test_a_corrupt_file_is_an_error(tmp_path: Path) -> None:
    plain = write_jsonl(tmp_path / "d.jsonl", [(str(n), "text " * 50) for n in range(500)])
    zipped = gzip.compress(plain.read_bytes())
    path = tmp_path / "bad.jsonl.gz"
    damages = {
        "cut": zipped[: len(zipped) // 2],
        "no gzip": b"hello",
        "flipped": zipped[:200] + bytes([zipped[200] ^ 255]) + zipped[201:],
        "checksum": zipped[:-6] + b"\0\0" + zipped[-4:],
    }
    for name, data in damages.items():
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"bad.jsonl.gz is a corrupt gzip file"):
            read_all(path)
        assert name
    table = write_parquet(tmp_path / "bad.parquet", ["1"] * 99, ["x" * 99] * 99)
    data = table.read_bytes()
    for content in (data[: len(data) // 2], b"", b"PAR1", data[:20] + bytes(30) + data[50:]):
        table.write_bytes(content)
        with pytest.raises(DataError, match=r"bad.parquet"):
            read_all(table)


def test_parquet_without_a_usable_text_column_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), path)
    with pytest.raises(DataError, match=r"no column 'text' \(columns: body\): .*text_field"):
        read_all(path)
    assert read_all(path, text_field="body")[0] == [("d.parquet:1", "x")]
    pyarrow.parquet.write_table(pyarrow.table({"text": [1]}), path)
    with pytest.raises(DataError, match="column 'text' holds int64, not strings"):
        read_all(path)


def test_missing_empty_and_strange_paths_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no corpus given"):
        find_files([])
    with pytest.raises(DataError, match="does not exist: check the spelling"):
        find_files([tmp_path / "nothing"])
    with pytest.raises(DataError, match=r"holds no \.txt.* file \(0 files"):
        find_files([tmp_path])
    (tmp_path / "x.pdf").write_bytes(b"%PDF")
    with pytest.raises(DataError, match=r"holds no \.txt.* file \(1 files"):
        find_files([tmp_path])
    with pytest.raises(DataError, match="is no corpus file"):
        find_files([tmp_path / "x.pdf"])
    (tmp_path / "x.jsonl").write_bytes(b"\n \n")
    with pytest.raises(DataError, match="the corpus is empty: 1 files hold no document"):
        read_all(tmp_path)
    (tmp_path / "x.jsonl").write_bytes(b"{}\n")
    with pytest.raises(DataError, match=r"no document of the corpus is usable .*'x.jsonl:1'"):
        read_all(tmp_path)


def test_messages_are_one_line() -> None:
    assert str(DataError("a\nb\r\nc")) == "a b c"


def test_the_split_is_a_stable_hash_of_the_name() -> None:
    names = [f"document-{number}" for number in range(20_000)]
    assert [name for name in names[:60] if is_heldout(name, 0.1)] == GOLDEN_HELDOUT
    held = {fraction: {n for n in names if is_heldout(n, fraction)} for fraction in (0, 0.05, 0.2)}
    assert held[0] == set()
    assert held[0.05] < held[0.2]
    assert len(held[0.05]) == pytest.approx(1000, abs=150)
    assert isinstance(is_heldout("\udcff \ud800", 0.5), bool)
    for bad in (-0.1, 1, 1.5, float("nan")):
        with pytest.raises(DataError, match="heldout_fraction must be"):
            is_heldout("x", bad)


GOLDEN_HELDOUT = ["document-5", "document-21", "document-26", "document-43", "document-59"]


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8")))
def test_text_is_measured_in_utf8(text: str) -> None:
    assert utf8_bytes(text) == len(text.encode())
    assert utf8_bytes(text + "\ud800") is None


def test_standard_library_corpus(tmp_path: Path) -> None:
    path = write_standard_library_corpus(tmp_path / "one")
    again = write_standard_library_corpus(tmp_path / "two")
    assert path.read_bytes() == again.read_bytes()
    facts = json.loads((tmp_path / "one" / "corpus.json").read_text())
    documents, problems = read_all(tmp_path / "one")
    names = [name for name, _ in documents]
    assert problems == []
    assert names == sorted(names)
    assert {"ast.py", "asyncio/base_events.py"} <= set(names)
    assert not [name for name in names if "/test/" in f"/{name}" or "site-packages" in name]
    assert not [name for name in names if name.startswith("_sysconfigdata")]
    assert facts["documents"] == len(documents) > 300
    assert facts["text_bytes"] == sum(len(text.encode()) for _, text in documents) > 5e6
    assert facts["file_bytes"] == path.stat().st_size
    assert facts["file_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.skipif(
    not (SHARED / "data").is_dir(), reason=f"no real corpora in {SHARED}; set SPADE_SHARED"
)
@pytest.mark.parametrize(("name", "count"), [("sotu", 249), ("pd_books", 49), ("peps", 701)])
def test_real_corpora(name: str, count: int) -> None:
    documents, problems = read_all(SHARED / "data" / name / "docs.jsonl.gz")
    assert len(documents) == count
    assert problems == []
