"""What a data set is said to hold is what it holds; and the page shows it safely."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.building.build import build_dataset
from data_pipeline.errors import DataError
from data_pipeline.inspection.inspect import (
    describe_dataset,
    describe_epoch,
    iterate_shard_tokens,
    length_histogram,
)
from data_pipeline.inspection.inspect_report import write_inspection
from data_pipeline.shards.manifest import Manifest
from data_pipeline.tokenization.tokenizer import DocumentTokenizer, train_tokenizer


@given(lengths=st.lists(st.integers(1, 10**6), min_size=1, max_size=60))
def test_every_document_is_in_one_class_of_the_histogram(lengths: list[int]) -> None:
    classes = length_histogram(np.array(lengths, np.uint64))
    assert sum(item["documents"] for item in classes) == len(lengths)
    assert sum(item["tokens"] for item in classes) == sum(lengths)
    for item in classes:
        inside = [length for length in lengths if item["from"] <= length < item["below"]]
        assert (item["documents"], item["tokens"]) == (len(inside), sum(inside))
    assert classes[0]["documents"] > 0
    assert classes[-1]["documents"] > 0


def test_an_epoch_by_hand() -> None:
    shards = [np.array([100, 50], np.uint64), np.array([30, 129], np.uint64)]
    epoch = describe_epoch(shards, 64)
    # 150 and 159 tokens hold two windows each, 53 are left over.
    assert epoch["concat"] == {
        "window_tokens": 64,
        "windows": 4,
        "tokens_left_out": 53,
        "full": 1.0,
    }
    # 2 + 1 + 1 + 3 parts, nothing left out.
    assert epoch["document"]["windows"] == 7
    assert epoch["document"]["tokens_left_out"] == 0
    assert epoch["document"]["full"] == pytest.approx(309 / (7 * 64))
    with pytest.raises(DataError, match="at least 1 token"):
        describe_epoch(shards, 0)


def test_a_description_decodes_with_the_tokenizer_beside_the_data(
    prose_data: Path, prose_corpus: Path, tmp_path: Path
) -> None:
    description = describe_dataset(prose_data / "train", sequence_length_tokens=128)
    assert json.loads(json.dumps(description)) == description
    first = next(iterate_shard_tokens(prose_data / "train"))
    text = json.loads(prose_corpus.read_text().splitlines()[0])["text"]
    assert description["first_documents"][0]["name"] == first.name
    assert len(description["first_documents"][0]["text"]) > 100
    assert text.startswith(description["first_documents"][0]["text"])
    manifest = Manifest.load(prose_data / "train")
    windows = sum(info.tokens // 128 for info in manifest.shards)
    assert description["epoch"]["concat"]["windows"] == windows
    from data_pipeline.corpora.corpus import iterate_documents

    other = train_tokenizer(
        iterate_documents([prose_corpus]), vocab_size=300, sentinels=8, out=tmp_path / "tok"
    )
    with pytest.raises(DataError, match="is not the one the shards were made with"):
        describe_dataset(prose_data / "train", tokenizer=other)


def test_the_page_needs_nothing_and_runs_nothing(prose_data: Path, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script> & <img src=x onerror=alert(2)>"
    (tmp_path / "c.jsonl").write_text(
        "\n".join(json.dumps({"id": f"{evil}{n}", "text": f"{evil} {n}"}) for n in range(30))
    )
    build_dataset(
        [tmp_path / "c.jsonl"],
        DocumentTokenizer.load(prose_data / "tokenizer"),
        tmp_path / "out",
        heldout_fraction=0.3,
    )
    descriptions = [
        describe_dataset(tmp_path / "out" / part, sequence_length_tokens=16)
        for part in ("train", "heldout")
    ]
    page, picture = write_inspection(descriptions, tmp_path / "page")
    content = page.read_text()
    assert "<script" not in content
    assert "onerror=alert(2)&gt;" in content
    assert re.findall(r"<img [^>]*src=\"(.{10})", content) == ["data:image"]
    assert "http" not in content.replace("http-equiv", "")
    assert "default-src &#x27;none&#x27;" in content
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert base64.b64encode(picture.read_bytes()).decode() in content
    # The same data give the same page.
    again, _ = write_inspection(descriptions, tmp_path / "again")
    assert again.read_bytes() == page.read_bytes()
