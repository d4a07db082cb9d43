"""Planning shards: every document in exactly one, whatever the files and sizes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.corpus import find_files, is_heldout, iterate_documents
from data_pipeline.errors import DataError
from data_pipeline.plan import (
    HELDOUT,
    TRAIN,
    FileScan,
    PlanReader,
    ReadingOptions,
    ShardPlan,
    block_text_bytes,
    corpus_fingerprint,
    plan_shards,
    scan_file,
)
from data_pipeline.team import Team, split_by_cost

OPTIONS = ReadingOptions(text_field="text", name_field="id", heldout_fraction=0.3)


def write_corpus(folder: Path, lengths_of_files: list[list[int]]) -> None:
    for number, lengths in enumerate(lengths_of_files):
        lines = [
            # A document of length zero is unusable.
            json.dumps(
                {"id": f"{number}-{n}", "text": None if length == 0 else "é" * length},
                separators=(",", ":"),
            )
            for n, length in enumerate(lengths)
        ]
        data = "\n".join([*lines, "", ""]).encode()
        if number % 3 == 0:
            (folder / f"{number:03d}.jsonl").write_bytes(data)
        elif number % 3 == 1:
            (folder / f"{number:03d}.jsonl.gz").write_bytes(gzip.compress(data, 1))
        elif lengths and lengths[0]:
            (folder / f"{number:03d}.txt").write_text("é" * lengths[0], encoding="utf-8")


def plan(folder: Path, shard_text_bytes: int | None) -> tuple[list[ShardPlan], list[FileScan]]:
    files, _ = find_files([folder])
    block_bytes = block_text_bytes(shard_text_bytes)
    scans = [
        FileScan.from_json(
            json.loads(
                json.dumps(scan_file(files, number, OPTIONS, block_bytes, lambda _: None).to_json())
            )
        )
        for number in range(len(files))
    ]
    return plan_shards(scans, shard_text_bytes), scans


@settings(deadline=None, max_examples=60)
@given(
    lengths_of_files=st.lists(
        st.lists(st.integers(0, 30), max_size=12), min_size=1, max_size=7
    ).filter(lambda files: bool(files[0])),
    shard_text_bytes=st.integers(1, 300),
)
def test_every_document_lies_in_exactly_one_shard(
    tmp_path_factory: pytest.TempPathFactory,
    lengths_of_files: list[list[int]],
    shard_text_bytes: int,
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, lengths_of_files)
    shards, _ = plan(folder, shard_text_bytes)
    files, _ = find_files([folder])
    assert json.loads(json.dumps(shards)) == json.loads(
        json.dumps([ShardPlan.from_json(json.loads(json.dumps(shard))) for shard in shards])
    )
    try:
        documents = [
            (d.name, d.text) for d in iterate_documents([folder], on_problem=lambda _: None)
        ]
    except DataError:
        assert shards == []
        return
    for part in (TRAIN, HELDOUT):
        expected = [d for d in documents if is_heldout(d[0], 0.3) == (part == HELDOUT)]
        mine = [shard for shard in shards if shard.part == part]
        assert [shard.number for shard in mine] == list(range(len(mine)))
        # In one go, in any order, and each by a reader of its own.
        together = PlanReader(files, OPTIONS)
        read = [[(d.name, d.text) for d in together.read(shard)] for shard in mine]
        assert [document for shard in read for document in shard] == expected
        backwards = [[(d.name, d.text) for d in together.read(shard)] for shard in mine[::-1]]
        assert backwards[::-1] == read
        alone = [
            [(d.name, d.text) for d in PlanReader(files, OPTIONS).read(shard)] for shard in mine
        ]
        assert alone == read
        for shard in mine[:-1]:
            largest = max(len(text.encode()) for _, text in documents)
            assert shard.text_bytes <= max(shard_text_bytes, largest, 1)


def test_neighbouring_shards_are_read_without_beginning_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path, [[], [20] * 50])
    shards, _ = plan(tmp_path, 200)
    opened = []
    original = gzip.GzipFile.__init__

    def count(self: gzip.GzipFile, *arguments: object, **options: object) -> None:
        opened.append(arguments)
        original(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(gzip.GzipFile, "__init__", count)
    reader = PlanReader(find_files([tmp_path])[0], OPTIONS)
    train = [shard for shard in shards if shard.part == TRAIN]
    assert len(train) > 3
    for shard in train:
        assert list(reader.read(shard))
    assert len(opened) == 1


def test_the_fingerprint_tells_corpora_apart(tmp_path: Path) -> None:
    fingerprints = set()
    contents = ["x", "y", "xy", "x\ny"]
    for number, content in enumerate(contents):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "a.txt").write_text(content)
        fingerprints.add(corpus_fingerprint(plan(folder, None)[1]))
    (folder / "b.txt").write_bytes(b"\xff")
    fingerprints.add(corpus_fingerprint(plan(folder, None)[1]))
    (folder / "b.txt").rename(folder / "c.txt")
    fingerprints.add(corpus_fingerprint(plan(folder, None)[1]))
    assert len(fingerprints) == len(contents) + 2


def test_the_default_size_grows_with_the_corpus() -> None:
    def shards_of(total_bytes: int) -> int:
        block_bytes = block_text_bytes(None)
        blocks = [((0, n, 0), (1, 0), (block_bytes, 0)) for n in range(total_bytes // block_bytes)]
        scan = FileScan.from_json([blocks, [], ""])
        return len(plan_shards([scan], None))

    mebibyte = 2**20
    assert shards_of(mebibyte) == 1
    assert shards_of(40 * mebibyte) == 10
    assert 60 <= shards_of(1000 * mebibyte) <= 68
    assert 60 <= shards_of(4000 * mebibyte) <= 68


def test_a_corpus_that_changes_is_noticed(tmp_path: Path) -> None:
    write_corpus(tmp_path, [[5] * 20])
    shards, _ = plan(tmp_path, None)
    files, _ = find_files([tmp_path])
    lines = (tmp_path / "000.jsonl").read_text().split()
    for change in (lines[:-1], [*lines[:-1], lines[-1].replace("\\u00e9", "e", 1)]):
        (tmp_path / "000.jsonl").write_text("\n".join(change))
        reader = PlanReader(files, OPTIONS)
        with pytest.raises(DataError, match="the corpus changed while it was read"):
            _ = [list(reader.read(shard)) for shard in shards]


@given(costs=st.lists(st.integers(0, 1000), max_size=50), ranks=st.integers(1, 20))
def test_work_is_dealt_out_in_even_runs(costs: list[int], ranks: int) -> None:
    owners = split_by_cost(costs, ranks)
    assert len(owners) == len(costs)
    assert owners == sorted(owners)
    assert all(0 <= owner < ranks for owner in owners)
    loads = [
        sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank)
        for rank in range(ranks)
    ]
    if costs:
        assert max(loads) <= sum(costs) / ranks + max(costs)


def test_a_team_of_one_does_everything_in_order() -> None:
    told: list[int] = []

    def work(task: int, report: object) -> int:
        assert callable(report)
        report(task)
        return task * task

    team = Team()
    assert team.run(work, [0] * 5, told.append) == [0, 1, 4, 9, 16]
    assert told[-1] == 10
    assert team.broadcast({"a": 1}) == {"a": 1}
    assert team.threads() >= 1
