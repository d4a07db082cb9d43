"""Planning shards: every document in exactly one, whatever the files and sizes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.building.plan import (
    HELDOUT,
    TRAIN,
    CorpusChangedError,
    Planner,
    PlanReader,
    ShardPlan,
)
from data_pipeline.building.scan_together import scan_corpus
from data_pipeline.building.team import Dealer, Team, split_by_cost
from data_pipeline.corpora.corpus import find_files, is_heldout, iterate_documents
from data_pipeline.corpora.corpus_scan import (
    ROW,
    ReadingOptions,
    UnitScan,
    corpus_fingerprint,
    scan_unit,
    scan_units,
)
from data_pipeline.corpora.deduplication import find_duplicates
from data_pipeline.errors import DataError
from data_pipeline.progress import Work

OPTIONS = ReadingOptions(text_field="text", name_field="id")
FRACTION = 0.3


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


def tables_of(folder: Path) -> tuple[list[Path], list[UnitScan]]:
    work = folder.parent / f"{folder.name}-work"
    work.mkdir(exist_ok=True)
    paths = []

    def table_of(number: int) -> Path:
        paths.append(work / f"{number}.rows")
        return paths[-1]

    scans = scan_corpus(Team(), find_files([folder])[0], OPTIONS, table_of, lambda _: None)
    return paths, [UnitScan.from_json(json.loads(json.dumps(vars(scan)))) for scan in scans]


def plan(
    folder: Path, shard_text_bytes: int | None, *, keeps_duplicates: bool = True
) -> list[ShardPlan]:
    tables, scans = tables_of(folder)
    documents = sum(scan.documents for scan in scans)
    doubles = None if keeps_duplicates else find_duplicates(tables, documents, tables[0].parent)
    sources = [file.source for file in find_files([folder])[0]]
    shards = Planner(tables, documents, sources, FRACTION, doubles).shards(shard_text_bytes)
    return [ShardPlan.from_json(json.loads(json.dumps(shard))) for shard in shards]


@settings(deadline=None, max_examples=60)
@given(
    lengths_of_files=st.lists(
        st.lists(st.integers(0, 30), max_size=12), min_size=1, max_size=7
    ).filter(lambda files: bool(files[0])),
    shard_text_bytes=st.integers(1, 300),
    keeps_duplicates=st.booleans(),
)
def test_every_document_lies_in_exactly_one_shard(
    tmp_path_factory: pytest.TempPathFactory,
    lengths_of_files: list[list[int]],
    shard_text_bytes: int,
    keeps_duplicates: bool,
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, lengths_of_files)
    shards = plan(folder, shard_text_bytes, keeps_duplicates=keeps_duplicates)
    files, _ = find_files([folder])
    try:
        documents = [
            (d.name, d.text) for d in iterate_documents([folder], on_problem=lambda _: None)
        ]
    except DataError:
        assert shards == []
        return
    if not keeps_duplicates:
        first = {text: name for name, text in reversed(documents)}
        documents = [(name, text) for name, text in documents if first[text] == name]
    for part in (TRAIN, HELDOUT):
        expected = [d for d in documents if is_heldout(d[0], FRACTION) == (part == HELDOUT)]
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
        for shard, texts in zip(mine, read, strict=True):
            sizes = [len(text.encode()) for _, text in texts]
            assert (shard.documents, shard.text_bytes) == (len(sizes), sum(sizes))
            assert shard.text_bytes <= max(shard_text_bytes, max(sizes))
            assert shard.sources == ((0, len(sizes)),)


@settings(deadline=None, max_examples=60)
@given(
    lines=st.lists(st.sampled_from(["", "x", "y" * 7, "é" * 3]), max_size=30),
    ends=st.booleans(),
    unit_bytes=st.integers(1, 60),
)
def test_a_long_file_in_stretches_gives_the_rows_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], ends: bool, unit_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("stretches")
    texts = [json.dumps({"text": line}, ensure_ascii=False) if line else "" for line in lines]
    (folder / "a.jsonl").write_text("\n".join(texts) + ("\n" if ends else ""), encoding="utf-8")
    files, _ = find_files([folder])

    def rows(unit_bytes: int) -> bytes:
        content = b""
        ordinal = 0
        for number, unit in enumerate(scan_units(files, unit_bytes)):
            placed = unit._replace(first_ordinal=ordinal)
            table = folder.parent / f"{folder.name}-{unit_bytes}-{number}.rows"
            scan_unit(files, placed, OPTIONS, table, lambda _: None)
            content += table.read_bytes()
            data = (folder / "a.jsonl").read_bytes()
            ordinal += data[unit.start_bytes : unit.stop_bytes].count(b"\n")
        return content

    whole = rows(10**6)
    assert rows(unit_bytes) == whole
    assert len(whole) == ROW.itemsize * sum(map(bool, lines))


def test_a_finished_scan_is_found_again_and_a_stale_one_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_corpus(folder, [[5] * 20])
    tables, scans = tables_of(folder)
    before = tables[0].stat().st_mtime_ns
    again, same = tables_of(folder)
    assert same == scans
    assert again[0].stat().st_mtime_ns == before
    # A damaged table, and then a changed corpus, are scanned anew.
    sound = tables[0].read_bytes()
    tables[0].write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    assert tables_of(folder)[1] == scans
    assert tables[0].read_bytes() == sound
    (folder / "000.jsonl").write_text('{"text": "new"}')
    assert tables_of(folder)[1][0].documents == 1


def test_neighbouring_shards_are_read_without_beginning_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path, [[], [20] * 50])
    shards = plan(tmp_path, 200)
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
        fingerprints.add(corpus_fingerprint(*tables_of(folder)))
    (folder / "b.txt").write_bytes(b"\xff")
    fingerprints.add(corpus_fingerprint(*tables_of(folder)))
    (folder / "b.txt").rename(folder / "c.txt")
    fingerprints.add(corpus_fingerprint(*tables_of(folder)))
    assert len(fingerprints) == len(contents) + 2


def test_the_default_size_grows_with_the_corpus(tmp_path: Path) -> None:
    def shards_of(total_bytes: int) -> int:
        rows = np.zeros(total_bytes // 2**18, ROW)
        rows["size_bytes"], rows["name"] = 2**18, 2**64 - 1
        rows["ordinal"] = np.arange(len(rows))
        (tmp_path / "rows").write_bytes(rows.tobytes())
        return len(Planner([tmp_path / "rows"], len(rows), [0], 0.0).shards(None))

    mebibyte = 2**20
    assert shards_of(mebibyte) == 1
    assert shards_of(40 * mebibyte) == 10
    assert 60 <= shards_of(1000 * mebibyte) <= 68
    assert 60 <= shards_of(4000 * mebibyte) <= 68


def test_a_corpus_that_changes_is_noticed(tmp_path: Path) -> None:
    write_corpus(tmp_path, [[5] * 20])
    shards = plan(tmp_path, None)
    files, _ = find_files([tmp_path])
    lines = (tmp_path / "000.jsonl").read_text().split()
    for change in (lines[:-1], [*lines[:-1], lines[-1].replace("\\u00e9", "e", 1)]):
        (tmp_path / "000.jsonl").write_text("\n".join(change))
        reader = PlanReader(files, OPTIONS)
        with pytest.raises(CorpusChangedError, match="the corpus changed since it was read first"):
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


@given(
    costs=st.lists(st.integers(0, 100), max_size=40),
    ranks=st.integers(1, 6),
    speeds=st.lists(st.integers(1, 50), min_size=6, max_size=6),
)
def test_every_task_is_dealt_once_and_nobody_waits_while_there_is_work(
    costs: list[int], ranks: int, speeds: list[int]
) -> None:
    dealer = Dealer(costs, ranks)
    free_at = dict.fromkeys(range(ranks), 0)
    done: list[int] = []
    while free_at:
        rank = min(free_at, key=lambda rank: (free_at[rank], rank))
        task = dealer.next(rank)
        if task is None:
            # Whoever is sent away has left nothing behind.
            assert len(done) == len(costs)
            del free_at[rank]
            continue
        done.append(task)
        free_at[rank] += (costs[task] + 1) * speeds[rank]
    assert sorted(done) == list(range(len(costs)))


def test_a_process_takes_neighbours_and_then_the_second_half_of_the_longest_run() -> None:
    dealer = Dealer([10] * 12, 2)
    assert [dealer.next(0) for _ in range(6)] == [0, 1, 2, 3, 4, 5]
    # Rank 1 has not begun: the second half of its run goes over, in order.
    assert [dealer.next(0) for _ in range(3)] == [9, 10, 11]
    assert [dealer.next(1) for _ in range(2)] == [6, 7]
    assert [dealer.next(0), dealer.next(1), dealer.next(0)] == [8, None, None]


def test_a_team_of_one_does_everything_in_order() -> None:
    told: list[Work] = []

    def work(task: int, report: object) -> int:
        assert callable(report)
        report(Work(task, 1, 2 * task))
        return task * task

    team = Team()
    assert team.run(work, [0] * 5, told.append) == [0, 1, 4, 9, 16]
    assert told[-1] == Work(10, 5, 20)
    assert team.broadcast({"a": 1}) == {"a": 1}
    assert team.threads() >= 1
