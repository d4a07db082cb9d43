"""What a build leaves out, normalises and counts; and documents that cannot be tokenized."""

from __future__ import annotations

import gzip
import json
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from faulty_server import FaultyServer
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.building.build import build_dataset
from data_pipeline.building.build_record import input_names
from data_pipeline.building.repair import repair_dataset
from data_pipeline.corpora.corpus import is_heldout
from data_pipeline.corpora.corpus_scan import ROW
from data_pipeline.corpora.deduplication import DocumentMarks, find_duplicates
from data_pipeline.corpora.filters import TextRules
from data_pipeline.errors import DataError
from data_pipeline.inspection.inspect import iterate_shard_tokens
from data_pipeline.inspection.verify import verify_dataset
from data_pipeline.tokenization.tokenizer import DocumentTokenizer

Build = Callable[..., Any]


@pytest.fixture(scope="module")
def tokenizer(prose_data: Path) -> DocumentTokenizer:
    return DocumentTokenizer.load(prose_data / "tokenizer")


@pytest.fixture
def build(tokenizer: DocumentTokenizer, tmp_path: Path) -> Build:
    def run(*inputs: Path | str, out: str = "out", **options: Any) -> Any:
        chosen = {"heldout_fraction": 0.0, "shard_text_bytes": 2000, **options}
        with_tokenizer = chosen.pop("tokenizer", tokenizer)
        return build_dataset(
            inputs, with_tokenizer, tmp_path / out, **{"keep_names": True, **chosen}
        )

    return run


def write_jsonl(path: Path, texts: Sequence[str], prefix: str = "d") -> Path:
    lines = (json.dumps({"id": f"{prefix}{n}", "text": text}) for n, text in enumerate(texts))
    path.write_text("\n".join(lines))
    return path


def stored_names(folder: Path) -> list[str]:
    return [document.name for document in iterate_shard_tokens(folder)]


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_of_equal_texts_the_first_stays(build: Build, tmp_path: Path) -> None:
    texts = [f"text number {number % 40}" for number in range(100)]
    one = write_jsonl(tmp_path / "one.jsonl", texts)
    two = write_jsonl(tmp_path / "two.jsonl", ["text number 7", "something else"], "e")
    summary = build(one, two)
    assert stored_names(tmp_path / "out" / "train") == [*(f"d{n}" for n in range(40)), "e1"]
    assert summary.duplicates == 61
    duplicates = summary.train.source["duplicates"]
    assert duplicates["documents"] == 61
    sizes = [len(text) for text in [*texts[40:], "text number 7"]]
    assert duplicates["text_bytes"] == sum(sizes)
    kept = build(one, two, out="kept", keep_duplicates=True)
    assert kept.train.documents == 102
    assert kept.duplicates == 0
    # It is part of what the build is.
    with pytest.raises(DataError, match="keeps_duplicates"):
        build(one, two, keep_duplicates=True)


def test_no_text_lies_in_both_parts(build: Build, tmp_path: Path) -> None:
    texts = [f"text {number % 50}" for number in range(200)]
    corpus = write_jsonl(tmp_path / "c.jsonl", texts)
    names = {f"d{n}": text for n, text in enumerate(texts)}
    parts = [{text for name, text in names.items() if is_heldout(name, 0.3) == p} for p in (0, 1)]
    assert parts[0] & parts[1], "or the corpus tests nothing"
    summary = build(corpus, heldout_fraction=0.3)
    stored = [
        {names[name] for name in stored_names(tmp_path / "out" / part)}
        for part in ("train", "heldout")
    ]
    assert not stored[0] & stored[1]
    assert stored[0] | stored[1] == set(texts)
    assert summary.train.documents + summary.heldout.documents == 50
    # The first occurrence decides about the part.
    assert stored[1] == {texts[n] for n in range(50) if is_heldout(f"d{n}", 0.3)}


@settings(max_examples=80)
@given(
    texts=st.lists(st.integers(0, 30), max_size=60),
    cut=st.integers(0, 60),
    at_a_time=st.integers(1, 70),
)
def test_duplicates_are_those_of_a_plain_search(
    tmp_path_factory: pytest.TempPathFactory, texts: list[int], cut: int, at_a_time: int
) -> None:
    folder = tmp_path_factory.mktemp("tables")
    rows = np.zeros(len(texts), ROW)
    numbers = np.array(texts, np.uint64)
    # Hashes that differ in their first or in their last bits only.
    rows["text_high"] = (numbers % 5) << np.uint64(61)
    rows["text_low"] = numbers // 5
    tables = [folder / "0.rows", folder / "1.rows"]
    tables[0].write_bytes(rows[:cut].tobytes())
    tables[1].write_bytes(rows[cut:].tobytes())
    marks = find_duplicates(tables, len(texts), folder, at_a_time)
    expected = [text in texts[:number] for number, text in enumerate(texts)]
    assert marks.between(0, len(texts)).tolist() == expected
    assert marks.between(cut, len(texts)).tolist() == expected[cut:]
    assert {path.name for path in folder.iterdir()} == {"0.rows", "1.rows"}


def test_marks_in_the_same_byte_do_not_hide_each_other() -> None:
    marks = DocumentMarks(20)
    marks.add(np.array([0, 3, 7, 8, 19], np.uint64))
    assert np.flatnonzero(marks.between(0, 20)).tolist() == [0, 3, 7, 8, 19]
    assert np.flatnonzero(marks.between(3, 9)).tolist() == [0, 4, 5]


def test_filters_leave_out_and_count(build: Build, tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "c.jsonl", ["a", "good one", "żż", "good " * 9, "bad one"])
    rules = TextRules(min_bytes=4, max_bytes=20, require=r"\bgood\b")
    summary = build(corpus, rules=rules)
    assert stored_names(tmp_path / "out" / "train") == ["d1"]
    assert summary.filtered == {"max_bytes": 1, "min_bytes": 1, "require": 2}
    assert summary.train.source["filtered"] == summary.filtered
    assert summary.train.source["rules"]["require"] == r"\bgood\b"
    with pytest.raises(DataError, match="rules"):
        build(corpus)
    with pytest.raises(DataError, match=r"filters leave no document .*min_bytes 5"):
        build(corpus, out="none", rules=TextRules(min_bytes=1000))


@pytest.mark.parametrize(
    "wrong",
    [
        {"normalization": "nfd"},
        {"min_bytes": 0},
        {"min_bytes": 5, "max_bytes": 4},
        {"require": "(unclosed"},
    ],
)
def test_impossible_rules_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        TextRules(**wrong)


@given(text=st.text(st.characters(codec="utf-8"), min_size=1, max_size=30))
def test_normalisation_is_that_of_unicode(text: str) -> None:
    for name, form in (("nfc", "NFC"), ("nfkc", "NFKC")):
        ruled = TextRules(normalization=name).apply(text)
        assert ruled.text == unicodedata.normalize(form, text)  # type: ignore[arg-type]
        assert ruled.size_bytes == len(ruled.text.encode())
    assert TextRules().apply(text).text == text


def test_normalisation_comes_before_everything_else(
    build: Build, tokenizer: DocumentTokenizer, tmp_path: Path
) -> None:
    corpus = write_jsonl(tmp_path / "c.jsonl", ["e\u0301t\u0301", "\u00e9t\u0301", "x"])
    summary = build(corpus, rules=TextRules(normalization="nfc"))
    stored = list(iterate_shard_tokens(tmp_path / "out" / "train"))
    assert [tokenizer.decode(document.tokens) for document in stored] == ["\u00e9t\u0301", "x"]
    assert summary.duplicates == 1
    assert summary.train.source["normalization"] == "nfc"
    plain = build(corpus, out="plain")
    assert plain.train.documents == 3
    assert plain.train.source["normalization"] == "none"


def test_tokens_are_counted_by_input(build: Build, prose_corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = write_jsonl(tmp_path / "a" / "docs.jsonl", ["first of a", "second of a"], "a")
    two = write_jsonl(tmp_path / "b" / "docs.jsonl", ["only one of b"], "b")
    summary = build(one, two, prose_corpus, heldout_fraction=0.1, shard_text_bytes=40_000)
    names = ["a/docs.jsonl", "b/docs.jsonl"]
    sources = summary.train.source["sources"]
    assert [item["input"] for item in sources[:2]] == names
    for part in (summary.train, summary.heldout):
        assert sum(item["tokens"] for item in part.source["sources"]) == part.tokens
        assert sum(item["documents"] for item in part.source["sources"]) == part.documents
    stored = {d.name: len(d.tokens) for d in iterate_shard_tokens(tmp_path / "out" / "train")}
    of_a = [length for name, length in stored.items() if name.startswith("a")]
    assert (sources[0]["documents"], sources[0]["tokens"]) == (len(of_a), sum(of_a))


def shards_of(out: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(out).items() if "shard-" in name}


def test_the_kind_of_file_and_its_place_do_not_matter(
    build: Build, prose_corpus: Path, tmp_path: Path
) -> None:
    pytest.importorskip("aiohttp", reason="the extra remote is not installed")
    options = {"heldout_fraction": 0.1, "shard_text_bytes": 40_000}
    data = prose_corpus.read_bytes()
    records = [json.loads(line) for line in data.splitlines()]
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(data)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(data))
    (folder / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(data))
    columns = {name: [record[name] for record in records] for name in ("id", "text")}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "a.parquet", row_group_size=50)
    build(prose_corpus, out="reference", **options)
    expected = shards_of(tmp_path / "reference")
    assert len(expected) > 8
    with FaultyServer(folder) as server:
        for number, path in enumerate(sorted(folder.iterdir())):
            for place, given in (("here", path), ("there", f"{server.url}/{path.name}?key=secret")):
                out = tmp_path / f"{number}-{place}"
                build(given, out=out.name, **options)
                assert shards_of(out) == expected, given
                assert "secret" not in (out / "build.json").read_text()
        # What was recorded is enough to make a shard again.
        shard = out / "train" / "shard-000001.tar"
        shard.unlink()
        assert repair_dataset(out).repaired == ("train/shard-000001.tar",)
        assert shards_of(out) == expected


def test_inputs_have_names_that_tell_them_apart() -> None:
    assert input_names(["/x/a/d.jsonl", "/x/b/d.jsonl"]) == ["a/d.jsonl", "b/d.jsonl"]
    assert input_names(["s3://bucket/news/", "docs/**/*.txt"]) == ["news", "*.txt"]
    assert input_names(["https://host/a.jsonl?signature=secret"]) == ["a.jsonl"]


class PickyTokenizer(DocumentTokenizer):
    """Refuses documents with a certain word, as a tokenizer with a fault would."""

    refused = "refuse"

    def encode_documents(self, texts: Sequence[str], **options: Any) -> list[npt.NDArray[Any]]:
        if any(self.refused in text for text in texts):
            raise RuntimeError("internal error\nin two lines")
        return super().encode_documents(texts, **options)


def test_a_document_that_cannot_be_tokenized_is_quarantined(
    build: Build, prose_data: Path, tmp_path: Path
) -> None:
    tokenizer = PickyTokenizer.load(prose_data / "tokenizer")
    texts = [
        f"please refuse {number}" if number in (3, 4, 90) else f"document {number} " * 9
        for number in range(100)
    ]
    corpus = write_jsonl(tmp_path / "c.jsonl", texts)
    summary = build(corpus, tokenizer=tokenizer)
    out = tmp_path / "out"
    lines = (out / "quarantine.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["name"] for entry in entries] == ["d3", "d4", "d90"]
    reason = "cannot be tokenized (internal error in two lines)"
    assert {entry["reason"] for entry in entries} == {reason}
    assert summary.quarantined == summary.train.source["quarantined"] == 3
    assert stored_names(out / "train") == [f"d{n}" for n in range(100) if n not in (3, 4, 90)]
    assert summary.train.documents == summary.train.source["sources"][0]["documents"] == 97
    assert verify_dataset(out / "train").is_sound
    # Shards without those documents are complete: nothing is made again.
    before = tree(out)
    assert build(corpus, tokenizer=tokenizer).already_complete
    assert tree(out) == before
    shutil.rmtree(out / "train")
    assert build(corpus, tokenizer=tokenizer).shards_written == summary.shards_written
    assert tree(out) == before


def test_a_shard_without_any_document_left_is_no_part_of_the_data_set(
    build: Build, prose_data: Path, tmp_path: Path
) -> None:
    tokenizer = PickyTokenizer.load(prose_data / "tokenizer")
    corpus = write_jsonl(tmp_path / "c.jsonl", ["refuse " * 400, "document " * 300])
    summary = build(corpus, tokenizer=tokenizer)
    assert [info.file for info in summary.train.shards] == ["shard-000001.tar"]
    assert build(corpus, tokenizer=tokenizer).already_complete
    corpus = write_jsonl(tmp_path / "d.jsonl", ["refuse this", "refuse that"])
    with pytest.raises(DataError, match="no document of the train part can be tokenized"):
        build(corpus, tokenizer=tokenizer, out="none")
