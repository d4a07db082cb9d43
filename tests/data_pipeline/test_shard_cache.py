"""The cache of remote shards under several processes and threads, kills and time-outs."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import xxhash
from faulty_server import FaultyServer
from remote_shards import (
    QUICK,
    SHARD_BYTES,
    Shard,
    ends_right,
    make_shards,
    start_reader,
    used_bytes,
)

from data_pipeline.errors import DataError
from data_pipeline.remote.dataset_folder import CacheSettings, RemoteFolder


@pytest.fixture
def shards(tmp_path: Path) -> list[Shard]:
    return make_shards(tmp_path / "served", 8)


@pytest.fixture
def server(tmp_path: Path, shards: list[Shard]) -> Iterator[FaultyServer]:
    with FaultyServer(tmp_path / "served") as server:
        yield server


def test_processes_share_a_small_cache(
    tmp_path: Path, server: FaultyServer, shards: list[Shard]
) -> None:
    """Each file is right, and the folder never holds more than it may."""
    size_bytes = 3 * SHARD_BYTES + 100
    for shard in shards[::2]:
        server.plan(shard.file, ("cut", 50_000), "flip", 503)
    processes = [
        start_reader(tmp_path, server.url, shards, size_bytes=size_bytes, seed=seed)
        for seed in range(3)
    ]
    most_bytes = 0
    while any(process.poll() is None for process in processes):
        most_bytes = max(most_bytes, used_bytes(tmp_path / "cache"))
        time.sleep(0.005)
    for process in processes:
        ends_right(process)
    assert SHARD_BYTES < most_bytes <= size_bytes
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_threads_and_processes_fetch_a_shard_once(
    tmp_path: Path, server: FaultyServer, shards: list[Shard]
) -> None:
    server.bytes_per_second = 2e6
    process = start_reader(tmp_path, server.url, shards[:1], size_bytes=10**7, rounds=1)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    settings = CacheSettings(folder=tmp_path / "cache", size_bytes=10**7, retry=QUICK)
    folders = [RemoteFolder(server.url, settings) for _ in range(2)]
    with ThreadPoolExecutor(6) as pool:
        opened = list(pool.map(lambda n: folders[n % 2].open_shard(shards[0]), range(6)))
    for descriptor in opened:
        assert xxhash.xxh3_128_hexdigest(os.pread(descriptor, 10**6, 0)) == shards[0].checksum
        os.close(descriptor)
    ends_right(process)
    assert len(server.requests) == 1


def test_threads_wait_for_room_and_get_it(
    tmp_path: Path, server: FaultyServer, shards: list[Shard]
) -> None:
    """Six threads, room for one file at a time."""
    server.bytes_per_second = 8e6
    settings = CacheSettings(folder=tmp_path / "cache", size_bytes=SHARD_BYTES + 50, retry=QUICK)
    folder = RemoteFolder(server.url, settings)

    def read(shard: Shard) -> bool:
        with os.fdopen(folder.open_shard(shard), "rb") as file:
            return xxhash.xxh3_128_hexdigest(file.read()) == shard.checksum

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(read, shards * 2))
    assert used_bytes(settings.folder) <= settings.size_bytes


def test_readers_keep_reading_what_is_evicted(
    tmp_path: Path, server: FaultyServer, shards: list[Shard]
) -> None:
    settings = CacheSettings(folder=tmp_path / "cache", size_bytes=SHARD_BYTES + 50, retry=QUICK)
    folder = RemoteFolder(server.url, settings)
    descriptor = folder.open_shard(shards[0])
    os.close(folder.open_shard(shards[1]))
    assert [path.stem for path in settings.folder.glob("*.data")] == [shards[1].checksum]
    assert xxhash.xxh3_128_hexdigest(os.pread(descriptor, 10**6, 0)) == shards[0].checksum
    os.close(descriptor)


@pytest.mark.parametrize("moment", range(3))
def test_a_process_killed_while_fetching_leaves_no_debt(
    tmp_path: Path, server: FaultyServer, shards: list[Shard], moment: int
) -> None:
    """What it reserved is free again, and the file is fetched anew."""
    server.bytes_per_second = 1e6
    process = start_reader(tmp_path, server.url, shards, size_bytes=SHARD_BYTES * 2)
    cache = tmp_path / "cache"
    deadline_seconds = time.monotonic() + 30
    while not list(cache.glob("*.partial")) and time.monotonic() < deadline_seconds:
        time.sleep(0.005)
    time.sleep(0.03 * moment)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(cache.glob("*.partial")), "killed in the middle"
    server.bytes_per_second = None
    settings = CacheSettings(folder=cache, size_bytes=SHARD_BYTES + 50, retry=QUICK)
    folder = RemoteFolder(server.url, settings)
    for shard in shards:
        with os.fdopen(folder.open_shard(shard), "rb") as file:
            assert xxhash.xxh3_128_hexdigest(file.read()) == shard.checksum
    assert not list(cache.glob("*.partial"))
    assert used_bytes(cache) <= settings.size_bytes


def test_many_kills_and_no_wrong_byte(
    tmp_path: Path, server: FaultyServer, shards: list[Shard]
) -> None:
    moments = random.Random(3)
    for seed in range(5):
        process = start_reader(
            tmp_path, server.url, shards, size_bytes=SHARD_BYTES * 3, seed=seed, rounds=10**6
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0.02, 0.4))
        process.kill()
        process.communicate()
    ends_right(start_reader(tmp_path, server.url, shards, size_bytes=SHARD_BYTES * 3))
    assert used_bytes(tmp_path / "cache") <= SHARD_BYTES * 3


def test_whoever_waits_for_a_process_that_hangs_says_so(
    tmp_path: Path, server: FaultyServer, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = CacheSettings(folder=tmp_path / "cache", size_bytes=10**6, retry=QUICK)
    folder = RemoteFolder(server.url, settings)
    monkeypatch.setattr(folder._cache, "_patience_seconds", 0.3)
    settings.folder.mkdir()
    partial = settings.folder / f"{shards[0].checksum}.partial"
    with partial.open("wb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(DataError, match=r"another process holds .*\.partial, and nothing has"):
            folder.open_shard(shards[0])
        holder.truncate(10**6)
        # Two that wait for room see each other wait, which is no progress.
        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(folder.open_shard, shard) for shard in shards[1:3]]
            for future in waiting:
                with pytest.raises(DataError, match="no room in the cache"):
                    future.result(timeout=20)
    os.close(folder.open_shard(shards[0]))
    os.close(folder.open_shard(shards[1]))


def test_links_and_pipes_in_the_cache_are_not_followed(
    tmp_path: Path, server: FaultyServer, shards: list[Shard]
) -> None:
    settings = CacheSettings(folder=tmp_path / "cache", size_bytes=10**6, retry=QUICK)
    folder = RemoteFolder(server.url, settings)
    settings.folder.mkdir()
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    (settings.folder / f"{shards[0].checksum}.partial").symlink_to(victim)
    with pytest.raises(DataError, match="cannot write"):
        folder.open_shard(shards[0])
    os.mkfifo(settings.folder / f"{shards[1].checksum}.data")
    os.close(folder.open_shard(shards[1]))
    assert victim.read_bytes() == b"untouched"


def test_a_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, server: FaultyServer, shards: list[Shard]
) -> None:
    (tmp_path / "cache").write_bytes(b"a file")
    settings = CacheSettings(folder=tmp_path / "cache" / "inner", retry=QUICK)
    with pytest.raises(DataError, match="cannot"):
        RemoteFolder(server.url, settings).open_shard(shards[0])


def test_a_forked_child_fetches_too(
    tmp_path: Path, server: FaultyServer, shards: list[Shard]
) -> None:
    settings = CacheSettings(folder=tmp_path / "cache", size_bytes=10**7, retry=QUICK)
    folder = RemoteFolder(server.url, settings)
    os.close(folder.open_shard(shards[0]))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            descriptor = folder.open_shard(shards[1])
            data = os.pread(descriptor, 10**6, 0)
            status = int(xxhash.xxh3_128_hexdigest(data) != shards[1].checksum)
        finally:
            os._exit(status)
    deadline_seconds = time.monotonic() + 20
    while time.monotonic() < deadline_seconds:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")
