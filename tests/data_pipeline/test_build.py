"""Building a data set: the same bytes however it is made, whatever happens on the way."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.building.build import build_dataset
from data_pipeline.corpora.corpus import is_heldout, iterate_documents
from data_pipeline.errors import DataError
from data_pipeline.inspection.inspect import iterate_shard_tokens
from data_pipeline.inspection.verify import verify_dataset
from data_pipeline.progress import Progress
from data_pipeline.shards.manifest import Manifest
from data_pipeline.tokenization.tokenizer import DocumentTokenizer, train_tokenizer

SHARED = Path(os.environ.get("SPADE_SHARED", Path(__file__).parents[3] / "shared"))
SHARD_TEXT_BYTES = 40_000


@pytest.fixture(scope="module")
def tokenizer(prose_data: Path) -> DocumentTokenizer:
    return DocumentTokenizer.load(prose_data / "tokenizer")


@pytest.fixture
def build(prose_corpus: Path, tokenizer: DocumentTokenizer, tmp_path: Path) -> Callable[..., Any]:
    def run(out: str = "out", **options: Any) -> Any:
        settings = {"heldout_fraction": 0.1, "shard_text_bytes": SHARD_TEXT_BYTES, **options}
        inputs = settings.pop("inputs", [prose_corpus])
        with_tokenizer = settings.pop("tokenizer", tokenizer)
        return build_dataset(
            inputs, with_tokenizer, tmp_path / out, **{"keep_names": True, **settings}
        )

    return run


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_data_set_holds_every_document_once(
    build: Callable[..., Any], prose_corpus: Path, tokenizer: DocumentTokenizer, tmp_path: Path
) -> None:
    told: list[Progress] = []
    summary = build(progress=told.append)
    documents = list(iterate_documents([prose_corpus]))
    out = tmp_path / "out"
    for part, heldout in (("train", False), ("heldout", True)):
        expected = [d for d in documents if is_heldout(d.name, 0.1) == heldout]
        stored = list(iterate_shard_tokens(out / part))
        assert [d.name for d in stored] == [d.name for d in expected]
        for have, want in zip(stored, expected, strict=True):
            assert have.tokens.tolist() == [*tokenizer.encode(want.text), 1]
        assert verify_dataset(out / part).is_sound
        manifest = Manifest.load(out / part)
        manifest.check_tokenizer(DocumentTokenizer.load(out / "tokenizer"))
        assert manifest.source["text_bytes"] == sum(len(d.text.encode()) for d in expected)
        assert manifest.source["inputs"] == [prose_corpus.name]
    assert summary.train == Manifest.load(out / "train")
    assert summary.heldout == Manifest.load(out / "heldout")
    assert (summary.quarantined, summary.already_complete) == (0, False)
    assert summary.shards_written == len(summary.train.shards) + len(summary.heldout.shards) > 4
    assert told[-1].stage == "write shards"
    assert told[-1].done == told[-1].total == sum(len(d.text.encode()) for d in documents)
    assert not (out / "quarantine.jsonl").exists()


def test_the_same_input_gives_the_same_bytes(build: Callable[..., Any], tmp_path: Path) -> None:
    build("one")
    build("two")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_a_complete_build_is_left_as_it_is(build: Callable[..., Any], tmp_path: Path) -> None:
    first = build()
    before = tree(tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("shard-*")}
    again = build()
    assert again.already_complete
    assert (again.shards_written, again.shards_kept) == (0, first.shards_written)
    assert again.train == first.train
    assert tree(tmp_path / "out") == before
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("shard-*")} == times


def test_what_is_missing_or_damaged_is_made_again(
    build: Callable[..., Any], tmp_path: Path
) -> None:
    build()
    out = tmp_path / "out"
    sound = tree(out)
    shards = sorted((out / "train").glob("*.tar"))
    choose = random.Random(0)

    def remove_manifests() -> None:
        for path in out.rglob("manifest.json"):
            path.unlink()

    def flip() -> None:
        data = bytearray(shards[1].read_bytes())
        data[choose.randrange(len(data))] ^= 1
        shards[1].write_bytes(data)

    damages: list[tuple[Callable[[], object], int]] = [
        (remove_manifests, 0),
        (shards[0].unlink, 1),
        (shards[0].with_suffix(".idx").unlink, 1),
        (flip, 1),
        (lambda: os.truncate(shards[2], 1000), 1),
        (lambda: (out / "train" / "shard-000000.tar.partial").write_bytes(b"half"), 0),
        (lambda: (out / "heldout" / "manifest.json.partial").write_bytes(b"half"), 0),
        (lambda: shutil.rmtree(out / "tokenizer"), 0),
    ]
    for damage, written in damages:
        damage()
        summary = build()
        assert summary.shards_written == written
        assert tree(out) == sound
    assert build().already_complete


def test_another_build_in_the_folder_is_refused(
    build: Callable[..., Any], prose_corpus: Path, tmp_path: Path
) -> None:
    build()
    before = tree(tmp_path / "out")
    other_corpus = tmp_path / "other.jsonl"
    lines = prose_corpus.read_text().splitlines()
    other_corpus.write_text("\n".join([*lines[:-1], lines[-1].replace("a", "b", 1)]))
    other_tokenizer = train_tokenizer(
        iterate_documents([prose_corpus]), vocab_size=300, sentinels=8, out=tmp_path / "tok"
    )
    changes: list[tuple[dict[str, Any], str]] = [
        ({"inputs": [other_corpus]}, "corpus_fingerprint"),
        ({"tokenizer": other_tokenizer}, "tokenizer_fingerprint"),
        ({"heldout_fraction": 0.2}, "heldout_fraction"),
        ({"shard_text_bytes": 90_000}, "plan_fingerprint"),
    ]
    for change, named in changes:
        with pytest.raises(
            DataError, match=rf"holds a build from something else .*{named}.*remove"
        ):
            build(**change)
        assert tree(tmp_path / "out") == before


def test_a_renamed_corpus_is_the_same_corpus(
    build: Callable[..., Any], prose_corpus: Path, tmp_path: Path
) -> None:
    build()
    before = tree(tmp_path / "out")
    shutil.copy(prose_corpus, tmp_path / "renamed.jsonl")
    assert build(inputs=[tmp_path / "renamed.jsonl"]).already_complete
    assert tree(tmp_path / "out") == before


def test_a_folder_with_other_files_is_left_alone(build: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(DataError, match=r"is not empty \(it holds 'thesis.tex'\)"):
        build()
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot create the folder .*file"):
        build("file")
    with pytest.raises(DataError, match=r"cannot create the folder .*file"):
        build("file/out")


def test_an_output_within_the_corpus_is_refused(build: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(DataError, match="lies within the corpus folder"):
        build(inputs=[tmp_path])


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc on this system")
def test_a_folder_without_write_permission_is_one_clear_line(
    prose_corpus: Path, tokenizer: DocumentTokenizer
) -> None:
    # Refused to everybody, the superuser included.
    with pytest.raises(
        DataError, match=r"cannot create the folder /proc/self/out: .*; .+"
    ) as error:
        build_dataset([prose_corpus], tokenizer, Path("/proc/self/out"))
    assert "\n" not in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_closed_to_the_user(build: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(DataError, match="Permission denied; choose a folder you may write to"):
        build()


def test_a_second_build_at_the_same_time_is_refused(
    build: Callable[..., Any], tmp_path: Path
) -> None:
    build()
    with (tmp_path / "out" / "build.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another build is writing"):
            build()
    assert build().already_complete


def test_bad_documents_are_quarantined(
    build: Callable[..., Any], prose_corpus: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "bad.txt").write_bytes(b"\xff\xfe not text")
    good = prose_corpus.read_bytes().splitlines()
    (folder / "lines.jsonl").write_bytes(b"\n".join([*good[:40], b"{broken", *good[40:]]))
    (folder / "notes.md").write_text("# ignored")
    summary = build(inputs=[folder])
    lines = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    listed = [json.loads(line) for line in lines]
    assert [entry["name"] for entry in listed] == ["bad.txt", "lines.jsonl:41"]
    assert [entry["reason"][:15] for entry in listed] == ["no valid UTF-8 ", "no valid JSON ("]
    assert summary.quarantined == summary.train.source["quarantined"] == 2
    assert summary.ignored_files == 1
    assert summary.train.documents + summary.heldout.documents == 120
    assert build(inputs=[folder]).already_complete


def test_nothing_usable_is_an_error(build: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "bad.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"no document of the corpus is usable .*'bad.txt': no val"):
        build(inputs=[folder])
    (folder / "bad.txt").write_text("one document only")
    with pytest.raises(DataError, match=r"leaves the \w+ part of 1 documents empty"):
        build(inputs=[folder])
    # No trace is left that would be in the way of a better corpus.
    assert build(inputs=[folder], heldout_fraction=0).train.documents == 1
    for bad in (-1, 1):
        with pytest.raises(DataError, match="heldout_fraction must be"):
            build(heldout_fraction=bad)
    with pytest.raises(DataError, match="shard_text_bytes must be at least 1"):
        build(shard_text_bytes=0)


def test_without_a_heldout_part_there_is_none(build: Callable[..., Any], tmp_path: Path) -> None:
    summary = build(heldout_fraction=0)
    assert summary.heldout is None
    assert summary.train.documents == 120
    assert not (tmp_path / "out" / "heldout").exists()


def test_a_large_vocabulary_takes_four_bytes(
    build: Callable[..., Any], prose_corpus: Path, tmp_path: Path
) -> None:
    wide = train_tokenizer(
        iterate_documents([prose_corpus]), vocab_size=300, sentinels=2**16, out=tmp_path / "tok"
    )
    summary = build(tokenizer=wide)
    assert summary.train.dtype == "<u4"
    first = next(iterate_shard_tokens(tmp_path / "out" / "train"))
    assert first.tokens.dtype == np.dtype("<u4")
    assert verify_dataset(tmp_path / "out" / "train").is_sound


@pytest.mark.slow
@pytest.mark.skipif(
    not (SHARED / "data").is_dir(), reason=f"no real corpora in {SHARED}; set SPADE_SHARED"
)
def test_real_corpora_are_built(tmp_path: Path, tokenizer: DocumentTokenizer) -> None:
    inputs = [SHARED / "data" / name / "docs.jsonl.gz" for name in ("sotu", "pd_books", "peps")]
    summary = build_dataset(
        inputs, tokenizer, tmp_path / "real", shard_text_bytes=2**20, keep_names=True
    )
    assert summary.heldout is not None
    assert summary.train.documents + summary.heldout.documents == 249 + 49 + 701
    documents = {d.name: d.text for d in iterate_documents(inputs)}
    for document in list(iterate_shard_tokens(tmp_path / "real" / "heldout"))[:10]:
        text = tokenizer.decode(document.tokens)
        assert text == documents[document.name].replace("\u2581", " ")


def test_names_are_kept_only_where_asked(build: Callable[..., Any], tmp_path: Path) -> None:
    """Without them a document is one member; ids, counts and reading are the same."""
    build("with")
    build("without", keep_names=False)
    named = list(iterate_shard_tokens(tmp_path / "with" / "train"))
    bare = list(iterate_shard_tokens(tmp_path / "without" / "train"))
    assert [d.tokens.tolist() for d in named] == [d.tokens.tolist() for d in bare]
    assert all(document.name == document.key for document in bare)
    assert not any(document.name == document.key for document in named)
    assert verify_dataset(tmp_path / "without" / "train").is_sound
    sizes = [
        sum(path.stat().st_size for path in (tmp_path / out / "train").glob("*.tar"))
        for out in ("with", "without")
    ]
    assert sizes[0] - sizes[1] >= 1024 * len(named)
