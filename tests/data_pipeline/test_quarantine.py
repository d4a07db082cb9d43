"""Going around damage: the same substitutes everywhere, and nobody else moves."""

from __future__ import annotations

import os
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_server import FaultyServer
from remote_shards import QUICK
from streams import open_stream, random_documents, stream_settings, write_dataset

from data_pipeline.errors import DamageError, DataError, UnavailableError
from data_pipeline.objectives import make_objective
from data_pipeline.reading import shard_reader
from data_pipeline.reading.batch_loader import BatchLoader, Stripes
from data_pipeline.reading.quarantine import Quarantine, QuarantineEntry
from data_pipeline.remote.dataset_folder import CacheSettings
from data_pipeline.shards.manifest import Manifest

OBJECTIVE = make_objective("causal_lm", input_length_tokens=64)
LENIENT = {"objective": OBJECTIVE, "on_damage": "quarantine", "max_damaged_fraction": 0.6}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(3)
    folder = tmp_path_factory.mktemp("sound") / "set"
    write_dataset(folder, [random_documents(rng, 80) for _ in range(4)])
    return folder


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage stays: nothing is gained by waiting before reading it again."""
    monkeypatch.setattr(shard_reader, "_RETRY_SECONDS", (0.0, 0.0))


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "set")
    return tmp_path / "set"


def flip_id(path: Path, choose: random.Random) -> None:
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        member = choose.choice([m for m in tar if m.name.endswith(".tokens.npy")])
    data[member.offset_data + choose.randrange(128, member.size)] ^= choose.randrange(1, 256)
    path.write_bytes(data)


def flip_header(path: Path, choose: random.Random) -> None:
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        member = choose.choice([m for m in tar if m.name.endswith(".tokens.npy")])
    data[member.offset_data + choose.randrange(128)] ^= 0x55
    path.write_bytes(data)


def cut(path: Path, choose: random.Random) -> None:
    os.truncate(path, choose.randrange(path.stat().st_size))


def cut_between_members(path: Path, choose: random.Random) -> None:
    with tarfile.open(path) as tar:
        os.truncate(path, choose.choice(tar.getmembers()[1:]).offset)


def empty(path: Path, choose: random.Random) -> None:
    path.write_bytes(b"")


def zero_page(path: Path, choose: random.Random) -> None:
    data = bytearray(path.read_bytes())
    start = choose.randrange(len(data) // 4096) * 4096
    data[start : start + 4096] = bytes(len(data[start : start + 4096]))
    path.write_bytes(data)


def remove(path: Path, choose: random.Random) -> None:
    path.unlink()


HARMS = [flip_id, flip_header, cut, cut_between_members, empty, zero_page, remove]


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("windows", ["concat", "document"])
def test_every_kind_of_damage_is_caught_and_gone_around(
    sound: Path,
    copy: Path,
    harm: Callable[[Path, random.Random], None],
    windows: str,
) -> None:
    """At random offsets: an error by default; else sound ids only, and only the places concerned.

    webdataset loses half a shard in silence for four of these kinds of damage, and other loaders
    deliver wrong ids after a flipped byte.
    """
    whole = open_stream(sound, objective=OBJECTIVE, windows=windows)
    samples = np.arange(2 * whole.samples_per_epoch["a"])
    expected = [row.tolist() for row in whole.batch(samples).input_ids]
    known = {tuple(row) for row in expected}
    for seed in range(3):
        choose = random.Random(seed)
        shard = choose.choice(Manifest.load(copy).shards).file
        harm(copy / shard, choose)
        strict = open_stream(copy, objective=OBJECTIVE, windows=windows)
        with pytest.raises(DataError, match=shard.removesuffix(".tar")):
            strict.batch(samples)
        stream = open_stream(copy, windows=windows, **LENIENT)
        located = stream.locate(samples)
        got = [row.tolist() for row in stream.make(located).input_ids]
        moved = {i for i, (a, b) in enumerate(zip(got, expected, strict=True)) if a[:64] != b[:64]}
        assert moved
        assert {stream.manifests["a"].shards[located.shards[i]].file for i in moved} == {shard}
        assert {entry.shard_file for entry in stream.quarantine.entries} == {shard}
        assert all(tuple(got[i]) in known for i in moved if windows == "concat")
        # Another process, in another order and company, substitutes alike.
        again = open_stream(copy, windows=windows, memory_map=True, **LENIENT)
        for i in [*sorted(moved, reverse=True)[:5], 0, 1]:
            row = again.batch([samples[i]]).input_ids[0].tolist()
            assert row == got[i][: len(row)]
        shutil.copy(sound / shard, copy / shard)
        shutil.copy((sound / shard).with_suffix(".idx"), (copy / shard).with_suffix(".idx"))


def test_a_damaged_index_costs_nothing(sound: Path, copy: Path, caplog: Any) -> None:
    for info in Manifest.load(copy).shards:
        index = copy / info.index_file
        data = bytearray(index.read_bytes())
        data[random.Random(info.file).randrange(len(data))] ^= 0x55
        index.write_bytes(data)
    for windows in ("concat", "document"):
        stream = open_stream(copy, objective=OBJECTIVE, windows=windows)
        reference = open_stream(sound, objective=OBJECTIVE, windows=windows)
        expected = reference.batch(np.arange(200)).input_ids
        assert np.array_equal(stream.batch(np.arange(200)).input_ids, expected)
    assert "made anew from the shard" in caplog.text


def test_damage_of_names_and_filling_costs_nothing(sound: Path, copy: Path) -> None:
    info = Manifest.load(copy).shards[0]
    path = copy / info.file
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        members = [m for m in tar if m.name.endswith(".json")]
    for member in members[:5]:
        data[member.offset_data] ^= 1  # a name
        data[member.offset_data + 500] ^= 1  # filling
    path.write_bytes(data)
    samples = np.arange(100)
    expected = open_stream(sound, objective=OBJECTIVE).batch(samples)
    assert np.array_equal(
        open_stream(copy, objective=OBJECTIVE).batch(samples).input_ids, expected.input_ids
    )


def test_a_run_goes_on_around_what_it_knew_though_it_was_repaired(sound: Path, copy: Path) -> None:
    flip_id(copy / Manifest.load(copy).shards[1].file, random.Random(5))
    stream = open_stream(copy, **LENIENT)
    samples = np.arange(stream.samples_per_epoch["a"])
    around = stream.batch(samples).input_ids
    entries = stream.quarantine.entries
    assert [QuarantineEntry.from_json(entry.to_json()) for entry in entries] == list(entries)
    resumed = open_stream(sound, quarantined=entries, objective=OBJECTIVE)
    assert np.array_equal(resumed.batch(samples).input_ids, around)
    assert resumed.quarantine.take_new() == []
    assert not np.array_equal(open_stream(sound, objective=OBJECTIVE).batch(samples), around)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_tells_what_was_found(copy: Path, workers: int) -> None:
    file = Manifest.load(copy).shards[2].file
    flip_id(copy / file, random.Random(1))
    stripes = Stripes(global_batch_size=4, micro_batch_size=4, rank=0, world_size=1)
    reference = open_stream(copy, **LENIENT)
    with BatchLoader(stream_settings(copy, **LENIENT), stripes, workers=workers) as loader:
        for step in range(reference.samples_per_epoch["a"] // 4):
            expected = reference.batch(np.arange(4 * step, 4 * step + 4))
            assert np.array_equal(next(loader).input_ids, expected.input_ids)
        # Each worker finds damage for itself.
        assert {(entry.source, entry.shard_file) for entry in loader.quarantined} == {("a", file)}
        assert 1 <= len(loader.quarantined) <= max(1, workers) * len(reference.quarantine.entries)


def test_too_much_damage_is_an_error_all_the_same(copy: Path) -> None:
    for info in Manifest.load(copy).shards[:2]:
        (copy / info.file).unlink()
    stream = open_stream(copy, objective=OBJECTIVE, on_damage="quarantine")
    with pytest.raises(DataError, match=r"of source 'a' is damaged, more than .* 0.001 allows"):
        stream.batch(np.arange(stream.samples_per_epoch["a"]))
    with pytest.raises(DataError, match="is damaged, more than"):
        open_stream(copy, objective=OBJECTIVE, on_damage="quarantine").check_files()


def test_a_list_only_grows(sound: Path) -> None:
    quarantine = Quarantine({"a": Manifest.load(sound)}, policy="quarantine", maximum_fraction=1)
    file = Manifest.load(sound).shards[0].file
    first, second, third = (10, 20), (20, 30), (50, 51)
    for ranges, new in (((first, third), 1), ((third,), 0), ((third, second), 1)):
        quarantine.take("a", DamageError("broken", shard_file=file, ranges=ranges))
        assert len(quarantine.take_new()) == new
    found = [quarantine.contains("a", file, start, 5) for start in (5, 6, 29, 30, 45, 46, 51)]
    assert found == [False, True, True, False, False, True, False]
    for ranges, new in ((None, 1), ((first,), 0), (None, 0)):
        quarantine.take("a", DamageError("broken", shard_file=file, ranges=ranges))
        assert len(quarantine.take_new()) == new
    assert quarantine.contains("a", file, 100, 1)
    assert not quarantine.contains("b", file, 0, 100)
    assert not quarantine.is_empty
    strict = Quarantine({"a": Manifest.load(sound)})
    with pytest.raises(DamageError, match="broken"):
        strict.take("a", DamageError("broken", shard_file=file, ranges=((0, 1),)))
    assert strict.is_empty
    for value in ({}, {"source": "a", "shard_file": file, "ranges": "x", "reason": ""}):
        with pytest.raises(DataError, match="no entry of a quarantine"):
            QuarantineEntry.from_json(value)


def test_what_only_came_wrong_once_is_read_again(sound: Path) -> None:
    """A network file system may hiccup: only what stays wrong is damage."""
    reader = open_stream(sound, objective=OBJECTIVE)._sources[0].reader
    shard = reader.shard(0)
    good = shard._descriptor
    hiccups = [os.open("/dev/null", os.O_RDONLY), good]
    read = shard._read_blocks

    def hiccup(blocks: range, scratch: Any) -> memoryview:
        shard._descriptor = hiccups.pop(0) if hiccups else good
        return read(blocks, scratch)

    shard._read_blocks = hiccup  # type: ignore[method-assign]
    target, again = np.empty(64, "<u2"), np.empty(64, "<u2")
    reader.read(target.view(np.uint8).data, 0, 100)
    assert hiccups == []
    shard._read_blocks = read  # type: ignore[method-assign]
    reader.read(again.view(np.uint8).data, 0, 100)
    assert np.array_equal(target, again)


def test_a_server_that_does_not_answer_is_no_damage(sound: Path, tmp_path: Path) -> None:
    """An outage must not put whole data sets into quarantine; wrong bytes on the server may."""
    cache = CacheSettings(folder=tmp_path / "cache", retry=QUICK)
    file = Manifest.load(sound).shards[0].file
    with FaultyServer(sound) as server:
        stream = open_stream(server.url, cache=cache, **LENIENT)
        samples = np.arange(stream.samples_per_epoch["a"])
        expected = open_stream(sound, objective=OBJECTIVE).batch(samples).input_ids
        server.always[file] = 503
        with pytest.raises(UnavailableError, match=file):
            stream.batch(samples)
        assert stream.quarantine.is_empty
        server.always[file] = "flip"
        around = stream.batch(samples).input_ids
        assert not np.array_equal(around, expected)
        assert [entry.shard_file for entry in stream.quarantine.entries] == [file]
        del server.always[file]
        again = open_stream(server.url, cache=cache, **LENIENT)
        assert np.array_equal(again.batch(samples).input_ids, expected)
