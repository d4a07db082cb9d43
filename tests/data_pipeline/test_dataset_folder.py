"""Folders behind paths and URLs: what is read, what is refused, how failures are told."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import xxhash
from faulty_server import FaultyServer

from data_pipeline.errors import DataError
from data_pipeline.remote.dataset_folder import (
    CacheSettings,
    LocalFolder,
    RemoteFolder,
    RetrySettings,
    open_dataset_folder,
)

SHARD_BYTES = 300_000
QUICK = RetrySettings(
    attempts=3, timeout_seconds=20, first_delay_seconds=0.01, longest_delay_seconds=0.05
)
HASTY = dataclasses.replace(QUICK, timeout_seconds=0.5)
"""For servers that do not answer; others may take their time on a busy machine."""


@dataclass(frozen=True)
class Shard:
    file: str
    size_bytes: int
    checksum: str


def make_shards(folder: Path, number: int, size_bytes: int = SHARD_BYTES) -> list[Shard]:
    folder.mkdir(exist_ok=True)
    shards = []
    for position in range(number):
        data = os.urandom(size_bytes)
        (folder / f"shard-{position:06d}.tar").write_bytes(data)
        checksum = xxhash.xxh3_128_hexdigest(data)
        shards.append(Shard(f"shard-{position:06d}.tar", size_bytes, checksum))
    return shards


def content(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def stored(folder: Path, suffix: str = ".data") -> list[Path]:
    return sorted(folder.glob(f"*{suffix}")) if folder.exists() else []


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    with FaultyServer(tmp_path / "served") as server:
        yield server


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    return make_shards(tmp_path / "served", 1)[0]


@pytest.fixture
def remote(
    server: FaultyServer, shard: Shard, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[RemoteFolder]:
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    fault = parameters.get("fault")
    is_silent = isinstance(fault, tuple) and fault[0] in ("hang", "trickle")
    retry = HASTY if is_silent else QUICK
    settings = CacheSettings(folder=tmp_path / "cache", size_bytes=10**6, retry=retry)
    folder = open_dataset_folder(server.url, settings)
    assert isinstance(folder, RemoteFolder)
    yield folder
    folder.close()


def is_right(descriptor: int, shard: Shard) -> bool:
    return xxhash.xxh3_128_hexdigest(content(descriptor)) == shard.checksum


def test_a_shard_is_fetched_once_and_then_comes_from_the_cache(
    server: FaultyServer, remote: RemoteFolder, shard: Shard, tmp_path: Path
) -> None:
    assert is_right(remote.open_shard(shard), shard)
    assert is_right(remote.open_shard(shard), shard)
    assert server.requests == [(shard.file, 0)]
    assert [path.stat().st_size for path in stored(tmp_path / "cache")] == [SHARD_BYTES]
    assert not stored(tmp_path / "cache", ".partial")


@pytest.mark.parametrize(
    ("fault", "starts"),
    [
        (("cut", 100_000), [0, 100_000]),
        (("cut", 0), [0, 0]),
        ("short", [0, 150_000]),
        ("flip", [0, 0]),
        ("long", [0, 0]),
        ("endless", [0, 0]),
        (503, [0, 0]),
        (429, [0, 0]),
        (500, [0, 0]),
        (("hang", 30), [0, 0]),
        (("trickle", 0.2), [0, 0]),
    ],
)
def test_a_passing_fault_is_overcome(
    server: FaultyServer, remote: RemoteFolder, shard: Shard, fault: object, starts: list[int]
) -> None:
    server.plan(shard.file, fault)
    assert is_right(remote.open_shard(shard), shard)
    assert [start for _, start in server.requests] == starts


def test_a_server_without_ranges_sends_again_what_is_there_already(
    server: FaultyServer, remote: RemoteFolder, shard: Shard
) -> None:
    server.has_ranges = False
    server.plan(shard.file, ("cut", 200_000))
    assert is_right(remote.open_shard(shard), shard)
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("fault", "tries", "words"),
    [
        (("cut", 0), 3, "after 3 tries"),
        ("short", 3, "of 300000 bytes"),
        ("flip", 3, "wrong bytes arrived"),
        ("long", 3, "more than the 300000 bytes"),
        ("endless", 3, "more than the 300000 bytes"),
        ("gzip", 1, None),
        (503, 3, "the server answered 503"),
        (404, 1, "it is not there"),
        (403, 1, "access is denied"),
        (("hang", 30), 3, "no answer within 0.5 s"),
        (("trickle", 0.3), 3, "no answer within 0.5 s"),
    ],
)
def test_a_lasting_fault_is_one_line_and_leaves_nothing_behind(
    server: FaultyServer,
    remote: RemoteFolder,
    shard: Shard,
    tmp_path: Path,
    fault: object,
    tries: int,
    words: str | None,
) -> None:
    server.always[shard.file] = fault
    if words is None:
        assert is_right(remote.open_shard(shard), shard), "an encoding is claimed, not believed"
        return
    started_seconds = time.monotonic()
    with pytest.raises(DataError) as caught:
        remote.open_shard(shard)
    assert time.monotonic() - started_seconds < 6
    message = str(caught.value)
    assert words in message
    assert f"{server.url}/{shard.file}" in message
    assert "\n" not in message
    assert len(server.requests) == tries
    assert not stored(tmp_path / "cache")
    assert not stored(tmp_path / "cache", ".partial")


def test_nobody_listening_is_one_line(shard: Shard, tmp_path: Path) -> None:
    settings = CacheSettings(folder=tmp_path / "cache", retry=QUICK)
    folder = RemoteFolder("http://127.0.0.1:9", settings)
    with pytest.raises(DataError, match=r"cannot fetch http://127\.0\.0\.1:9/shard-000000\.tar"):
        folder.open_shard(shard)
    with pytest.raises(DataError, match=r"manifest\.json.*after 3 tries"):
        folder.exists("manifest.json")


def test_small_files_are_read_bounded_checked_and_kept(
    server: FaultyServer, remote: RemoteFolder, tmp_path: Path
) -> None:
    data = b"x" * 1000
    (tmp_path / "served" / "shard-000000.idx").write_bytes(data)
    checksum = xxhash.xxh3_128_hexdigest(data)
    server.plan("shard-000000.idx", ("cut", 10), "flip")
    assert remote.read_bytes("shard-000000.idx", checksum) == data
    assert remote.read_bytes("shard-000000.idx", checksum) == data
    assert len(server.requests) == 3, "the second reading came from the cache"
    (kept,) = stored(tmp_path / "cache")
    kept.write_bytes(b"damaged")
    assert remote.read_bytes("shard-000000.idx", checksum) == data
    assert remote.read_bytes("shard-000000.idx") == data
    assert remote.exists("shard-000000.idx")
    assert not remote.exists("manifest.json")
    with pytest.raises(DataError, match="it is not there"):
        remote.read_bytes("manifest.json")


def test_a_small_file_without_end_is_bounded(
    server: FaultyServer, remote: RemoteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_pipeline.remote.remote_file.MAXIMUM_SMALL_FILE_BYTES", 2**20)
    (tmp_path / "served" / "manifest.json").write_bytes(b"{}")
    server.always["manifest.json"] = "endless"
    with pytest.raises(DataError, match="more than the 1048576 bytes"):
        remote.read_bytes("manifest.json")


def test_a_damaged_copy_is_fetched_once_more(
    server: FaultyServer, remote: RemoteFolder, shard: Shard, tmp_path: Path
) -> None:
    os.close(remote.open_shard(shard))
    (path,) = stored(tmp_path / "cache")
    with path.open("r+b") as file:
        file.write(b"damage")
    assert not is_right(remote.open_shard(shard), shard), "the reader finds out, not the cache"
    descriptor = remote.refetch_shard(shard)
    assert descriptor is not None
    assert is_right(descriptor, shard)
    path.write_bytes(b"cut off")
    assert is_right(remote.open_shard(shard), shard), "another length is seen at once"
    assert len(server.requests) == 3


def test_the_least_recently_used_goes_and_open_files_stay_readable(
    server: FaultyServer, tmp_path: Path
) -> None:
    shards = make_shards(tmp_path / "served", 4)
    settings = CacheSettings(
        folder=tmp_path / "cache", size_bytes=3 * SHARD_BYTES + 10, retry=QUICK
    )
    folder = RemoteFolder(server.url, settings)
    held = [folder.open_shard(shard) for shard in shards[:3]]
    time.sleep(0.02)
    os.close(folder.open_shard(shards[0]))
    os.close(folder.open_shard(shards[3]))
    kept = {path.stem for path in stored(settings.folder)}
    assert kept == {shards[position].checksum for position in (0, 2, 3)}
    assert all(is_right(descriptor, shard) for descriptor, shard in zip(held, shards, strict=False))
    with pytest.raises(DataError, match=r"holds 900010 in all: give it more"):
        folder.open_shard(Shard("shard-000009.tar", 10**6, "0" * 32))
    folder.close()


def test_prefetch_goes_in_order_and_does_not_overfill(server: FaultyServer, tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "served", 6)
    settings = CacheSettings(
        folder=tmp_path / "cache", size_bytes=6 * SHARD_BYTES, prefetch_threads=1, retry=QUICK
    )
    folder = RemoteFolder(server.url, settings)
    server.plan(shards[4].file, 404)
    folder.prefetch([shards[4], shards[3], shards[2], shards[1]])
    deadline_seconds = time.monotonic() + 10
    while len(stored(settings.folder)) < 2 and time.monotonic() < deadline_seconds:
        time.sleep(0.01)
    time.sleep(0.1)
    assert [file for file, _ in server.requests] == [shards[p].file for p in (4, 3, 2)]
    assert is_right(folder.open_shard(shards[3]), shards[3])
    assert is_right(folder.open_shard(shards[4]), shards[4]), "tried again when it is needed"
    folder.close()
    folder.close()
    with pytest.raises(DataError, match="stopped"):
        folder.open_shard(shards[5])


def test_close_ends_a_fetch_that_hangs(server: FaultyServer, shard: Shard, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    server.always[shard.file] = ("hang", 60)
    slow = RetrySettings(timeout_seconds=60)
    folder = RemoteFolder(server.url, CacheSettings(folder=tmp_path / "cache", retry=slow))
    folder.prefetch([shard])
    while not server.requests:
        time.sleep(0.01)
    started_seconds = time.monotonic()
    folder.close()
    assert time.monotonic() - started_seconds < 3
    left = set(threading.enumerate()) - before
    assert "shard prefetch" not in {thread.name for thread in left}
    assert not stored(tmp_path / "cache", ".partial")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where only the core is installed; the import itself fails for real."""
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    folder = RemoteFolder("gs://bucket/data", CacheSettings(folder=tmp_path, retry=QUICK))
    with pytest.raises(DataError, match=r"needs the package gcsfs: pip install"):
        folder.read_bytes("manifest.json")


@pytest.mark.parametrize("fault", [("trickle", 0.05)])
def test_no_thread_stays_behind_with_a_trickle(
    server: FaultyServer, remote: RemoteFolder, shard: Shard, fault: object
) -> None:
    before = set(threading.enumerate())
    server.always[shard.file] = fault
    with pytest.raises(DataError, match="no answer"):
        remote.open_shard(shard)
    deadline_seconds = time.monotonic() + 5
    while "remote file" in {thread.name for thread in set(threading.enumerate()) - before}:
        assert time.monotonic() < deadline_seconds
        time.sleep(0.01)


def test_secrets_of_a_url_stand_in_no_message(
    server: FaultyServer, shard: Shard, tmp_path: Path
) -> None:
    url = f"http://user:pass-word@127.0.0.1:{server.port}?token=se-cret&x=1"
    folder = open_dataset_folder(url, CacheSettings(folder=tmp_path / "cache", retry=HASTY))
    assert folder.name == server.url
    assert is_right(folder.open_shard(shard), shard)
    messages = []
    for fault in (503, 404, 403, "flip", ("cut", 5), ("hang", 20)):
        server.always["manifest.json"] = fault
        (tmp_path / "served" / "manifest.json").write_bytes(b"{}" * 100)
        with pytest.raises(DataError) as caught:
            folder.read_bytes("manifest.json", "0" * 32)
        messages.append(str(caught.value))
    with pytest.raises(DataError) as caught:
        open_dataset_folder("ftp://user:pass-word@host/x?token=se-cret")
    text = " ".join([*messages, str(caught.value)])
    assert "pass-word" not in text
    assert "se-cret" not in text
    assert "user" not in text
    assert messages[0].count(f"{server.url}/manifest.json") == 1
    folder.close()


class TestLocalFolder:
    def test_reads_and_opens(self, tmp_path: Path) -> None:
        shard = make_shards(tmp_path, 1)[0]
        folder = LocalFolder(tmp_path)
        assert is_right(folder.open_shard(shard), shard)
        data = (tmp_path / shard.file).read_bytes()
        assert folder.read_bytes(shard.file, shard.checksum) == data
        assert folder.exists(shard.file)
        assert not folder.exists("manifest.json")
        assert folder.refetch_shard(shard) is None
        with pytest.raises(DataError, match="its checksum differs"):
            folder.read_bytes(shard.file, "0" * 32)

    def test_refuses_what_is_missing_cut_or_no_file(self, tmp_path: Path) -> None:
        shard = make_shards(tmp_path, 1)[0]
        folder = LocalFolder(tmp_path)
        os.truncate(tmp_path / shard.file, 10)
        with pytest.raises(DataError, match="it has 10 bytes, the manifest says 300000"):
            folder.open_shard(shard)
        (tmp_path / shard.file).unlink()
        with pytest.raises(DataError, match="is missing, though the manifest lists it"):
            folder.open_shard(shard)
        with pytest.raises(DataError, match="cannot read"):
            folder.read_bytes("manifest.json")
        os.mkfifo(tmp_path / shard.file)
        with pytest.raises(DataError, match="no ordinary file"):
            folder.open_shard(shard)
        with pytest.raises(DataError, match="no ordinary file"):
            folder.read_bytes(shard.file)

    def test_reads_bounded(self, tmp_path: Path) -> None:
        with (tmp_path / "manifest.json").open("wb") as file:
            file.truncate(2**28 + 1)
        with pytest.raises(DataError, match="larger than"):
            LocalFolder(tmp_path).read_bytes("manifest.json")


@pytest.mark.parametrize(
    "settings",
    [{"attempts": 0}, {"timeout_seconds": 0}, {"timeout_seconds": float("nan")}],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(DataError):
        RetrySettings(**settings)  # type: ignore[arg-type]
    with pytest.raises(DataError):
        CacheSettings(folder=Path("x"), size_bytes=0)


def test_delays_double_are_bounded_and_spread() -> None:
    retry = RetrySettings(first_delay_seconds=1, longest_delay_seconds=8)
    for attempt, longest in ((1, 1), (2, 2), (3, 4), (4, 8), (50, 8), (5000, 8)):
        delays = {retry.delay_seconds(attempt, f"file-{number}") for number in range(50)}
        assert longest / 2 <= min(delays) < max(delays) <= longest
        assert len(delays) == 50
