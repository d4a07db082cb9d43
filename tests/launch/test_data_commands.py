"""The commands that prepare data, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import spade

from data_pipeline.progress import Progress
from launch import progress as progress_module
from launch.progress import ProgressDisplay


@pytest.fixture
def corpus(prose_corpus: Path, tmp_path: Path) -> Path:
    """A folder of text files with a double and a short one."""
    folder = tmp_path / "corpus" / "texts"
    folder.mkdir(parents=True)
    for number, line in enumerate(prose_corpus.read_text().splitlines()[:30]):
        (folder / f"{number:02d}.txt").write_text(json.loads(line)["text"])
    (folder / "double.txt").write_text((folder / "07.txt").read_text())
    (folder / "short.txt").write_text("hi")
    return folder.parent


def test_from_a_pattern_to_shards_and_through_damage(
    corpus: Path, prose_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    build: list[Any] = [
        *("data", "build", "--input", f"{corpus}/**/*.txt", "--tokenizer"),
        *(prose_data / "tokenizer", "--out", out, "--heldout-fraction", "0.2"),
        *("--normalization", "nfc", "--min-bytes", "10"),
    ]
    said = spade(*build)
    assert "1 documents are left out: their text occurred before" in said
    assert "1 documents are left out by --min-bytes" in said
    facts = json.loads(spade(*build, "--json"))
    assert (facts["written"], facts["duplicates"], facts["filtered"]) == (0, 1, {"min_bytes": 1})
    assert facts["train"]["documents"] + facts["heldout"]["documents"] == 30

    shard = out / "train" / "shard-000000.tar"
    sound = shard.read_bytes()
    shard.write_bytes(sound[:2000] + bytes([sound[2000] ^ 1]) + sound[2001:])
    assert f"damaged: {shard}" in spade("data", "verify", out, code=1)
    assert spade("data", "repair", out).endswith(f"made again: {shard}\n")
    assert shard.read_bytes() == sound
    assert f"ok: {out}: nothing to repair in 2 shards" in spade("data", "repair", out)
    corpus.rename(tmp_path / "moved")
    shard.unlink()
    assert "--input" in spade("data", "repair", out, code=1)
    moved = spade("data", "repair", out, "--input", f"{tmp_path}/moved/**/*.txt", "--json")
    assert json.loads(moved) == {"shards": 2, "repaired": ["train/shard-000000.tar"]}
    assert shard.read_bytes() == sound


def test_a_data_set_is_shown(prose_data: Path, tmp_path: Path) -> None:
    said = spade("data", "inspect", prose_data, "--sequence-length", "256", "--out", tmp_path / "p")
    assert "an epoch of windows of 256 tokens" in said
    assert "== lengths ==" in said
    assert "prose.jsonl" in said
    assert (tmp_path / "p" / "inspect.html").exists()
    assert (tmp_path / "p" / "lengths.png").exists()


def test_a_tokenizer_is_examined(prose_data: Path, prose_corpus: Path, corpus: Path) -> None:
    options = ("--input", prose_corpus, "--input", corpus)
    rows = json.loads(spade("tokenizer", "inspect", prose_data / "tokenizer", *options, "--json"))
    assert [row["input"] for row in rows] == ["prose.jsonl", "corpus", "all"]
    assert 0.99 < rows[2]["coverage"] <= 1
    assert "tokens/word" in spade("tokenizer", "inspect", prose_data / "tokenizer", *options)


def test_wrong_options_are_one_line(prose_data: Path, prose_corpus: Path, tmp_path: Path) -> None:
    build: list[Any] = ["data", "build", "--tokenizer", prose_data / "tokenizer"]
    build += ["--out", tmp_path / "out", "--input"]
    wrong = [
        ([prose_corpus, "--normalization", "NFD"], "normalization must be one of none, nfc, nfkc"),
        ([prose_corpus, "--require", "("], "is no regular expression"),
        (["ftp://host/a.txt"], "is no URL this program reads"),
        ([f"{tmp_path}/*.txt"], "matches no file"),
    ]
    for options, message in wrong:
        assert message in spade(*build, *options, code=1).replace("\n", " ")


def test_rates_and_the_time_left_are_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now)
    with ProgressDisplay() as show:
        show(Progress("write shards", 0, 100_000_000, "bytes"))
        # Found finished: it says nothing about how fast this goes.
        now += 30
        show(Progress("write shards", 40_000_000, 100_000_000, "bytes", 4000, 10_000_000))
        for _ in range(6):
            now += 5
            done = round(40_000_000 + (now - 1030) * 2_000_000)
            documents, tokens = round(4000 + (now - 1030) * 100), round(1e7 + (now - 1030) * 5e5)
            show(Progress("write shards", done, 100_000_000, "bytes", documents, tokens))
        now += 10
        show(Progress("verify shards", 10, None, "bytes"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "write shards: 0 B of 95.4 MiB"
    assert lines[-2] == (
        "write shards: 95.4 MiB of 95.4 MiB, 100 documents/s, 500,000 tokens/s, 2.0 MB/s, "
        "0.0 s left"
    )
    assert lines[-1] == "verify shards: 10 B"
