"""Repairing: exactly what is damaged is made again, byte for byte, or not at all."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.building.build import build_dataset
from data_pipeline.building.repair import repair_dataset
from data_pipeline.corpora.filters import TextRules
from data_pipeline.errors import DataError
from data_pipeline.tokenization.tokenizer import DocumentTokenizer


@pytest.fixture
def corpus(prose_corpus: Path, tmp_path: Path) -> Path:
    """Two files, with doubles, short documents and a compressed half."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = prose_corpus.read_text().splitlines()
    short = json.dumps({"id": "short", "text": "x"})
    (folder / "a.jsonl").write_text("\n".join([*lines[:60], lines[3], short]))
    (folder / "b.jsonl").write_text("\n".join(lines[50:]))
    return folder


@pytest.fixture
def built(corpus: Path, prose_data: Path, tmp_path: Path) -> Path:
    out = tmp_path / "out"
    summary = build_dataset(
        [corpus],
        DocumentTokenizer.load(prose_data / "tokenizer"),
        out,
        heldout_fraction=0.1,
        shard_text_bytes=30_000,
        rules=TextRules(min_bytes=5),
    )
    assert len(summary.train.shards) > 4
    assert summary.duplicates == 11
    return out


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_what_is_damaged_is_made_again_and_nothing_else(built: Path) -> None:
    sound = tree(built)
    assert repair_dataset(built).repaired == ()
    train = sorted((built / "train").glob("*.tar"))
    (held,) = sorted((built / "heldout").glob("*.tar"))
    choose = random.Random(3)
    damages: list[tuple[Callable[[Path], None], str]] = [
        (damage, ".tar"),
        (damage, ".idx"),
        (Path.unlink, ".tar"),
        (Path.unlink, ".idx"),
        (lambda path: os.truncate(path, 700), ".tar"),
    ]
    for harm, suffix in damages:
        chosen = [*choose.sample(train, 2), held]
        for path in chosen:
            harm(path.with_suffix(suffix))
        others = {
            path: path.stat().st_mtime_ns for path in built.rglob("*.tar") if path not in chosen
        }
        report = repair_dataset(built)
        assert sorted(report.repaired) == sorted(
            f"{path.parent.name}/{path.name}" for path in chosen
        )
        assert report.shards == len(train) + 1
        assert tree(built) == sound
        assert {path: path.stat().st_mtime_ns for path in others} == others


def test_a_source_that_moved_is_named(built: Path, corpus: Path, tmp_path: Path) -> None:
    sound = tree(built)
    damage(built / "train" / "shard-000002.tar")
    harmed = tree(built)
    corpus.rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"source cannot be found.*--input"):
        repair_dataset(built)
    assert tree(built) == harmed
    assert repair_dataset(built, [str(tmp_path / "moved")]).repaired == ("train/shard-000002.tar",)
    assert tree(built) == sound


def test_a_source_that_changed_changes_nothing(built: Path, corpus: Path) -> None:
    damage(built / "train" / "shard-000001.tar")
    harmed = tree(built)
    content = (corpus / "a.jsonl").read_text()
    # The same length, one letter of each text another.
    (corpus / "a.jsonl").write_text(content.replace("e", "o"))
    with pytest.raises(DataError, match=r"source has changed: train/shard-000001.tar .*--input"):
        repair_dataset(built)
    assert tree(built) == harmed
    # Where the damaged shard does not come from, changes do not matter.
    (corpus / "a.jsonl").write_text(content)
    (corpus / "c.jsonl").write_text('{"text": "new"}')
    (corpus / "0.jsonl").write_text('{"text": "new"}')
    repair_dataset(built)
    (corpus / "b.jsonl").unlink()
    damage(built / "train" / "shard-000001.tar")
    with pytest.raises(DataError, match=r"source has changed: b.jsonl and 0 more"):
        repair_dataset(built)


def test_what_is_no_build_cannot_be_repaired(built: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"build.json is missing: .*spade data build"):
        repair_dataset(tmp_path / "nothing")
    (built / "plan.json").write_text("{}")
    with pytest.raises(DataError, match=r"record of a build is damaged"):
        repair_dataset(built)
    shutil.rmtree(built / "train")
    with pytest.raises(DataError):
        repair_dataset(built)
