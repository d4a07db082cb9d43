"""Shards out of a real S3 server into the cache."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash
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
from data_pipeline.remote.dataset_folder import CacheSettings, RemoteFolder, RetrySettings

# Loading the server alone takes seconds.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, list[Shard]]]:
    """An S3 server in this process with eight shards in a bucket."""
    for package in ("moto", "s3fs", "boto3"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    import boto3
    from moto.server import ThreadedMotoServer

    served = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    served.start()
    host, port = served.get_host_and_port()
    folder = tmp_path_factory.mktemp("objects")
    shards = make_shards(folder, 8)
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key-of-a-test",
        "AWS_SECRET_ACCESS_KEY": "secret-of-a-test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="corpus")
        for shard in shards:
            client.put_object(
                Bucket="corpus",
                Key=f"data/train/{shard.file}",
                Body=(folder / shard.file).read_bytes(),
                ACL="public-read",
            )
        yield client, shards
    served.stop()


def test_shards_come_from_s3(tmp_path: Path, object_store: tuple[Any, list[Shard]]) -> None:
    client, shards = object_store
    settings = CacheSettings(folder=tmp_path / "cache", size_bytes=10**7, retry=QUICK)
    folder = RemoteFolder("s3://corpus/data/train", settings)
    folder.prefetch(shards[:4])
    for shard in shards:
        with os.fdopen(folder.open_shard(shard), "rb") as file:
            assert xxhash.xxh3_128_hexdigest(file.read()) == shard.checksum
    client.put_object(Bucket="corpus", Key="data/train/manifest.json", Body=b"{}")
    assert not folder.exists("missing.json")
    assert folder.exists("manifest.json")
    assert folder.read_bytes("manifest.json") == b"{}"
    client.put_object(Bucket="corpus", Key="data/train/manifest.json", Body=b"[]")
    assert folder.read_bytes("manifest.json") == b"[]", "no listing or answer is kept"
    with pytest.raises(DataError, match=r"cannot fetch s3://corpus/data/train/x\.tar: it is not"):
        folder.open_shard(Shard("x.tar", 5, "0" * 32))
    with pytest.raises(DataError, match=r"s3://corpus/data/train/shard-000000\.tar: wrong bytes"):
        folder.open_shard(Shard(shards[0].file, shards[0].size_bytes, "0" * 32))
    with pytest.raises(DataError, match="more than"):
        folder.open_shard(Shard(shards[0].file, 1000, "1" * 32))
    with pytest.raises(DataError, match="ended after 400000 of 400001"):
        folder.open_shard(Shard(shards[0].file, 400_001, "1" * 32))
    with pytest.raises(DataError, match="cannot fetch s3://nobodys"):
        RemoteFolder("s3://nobodys", settings).open_shard(Shard("x.tar", 5, "0" * 32))
    folder.close()


def test_processes_fill_a_small_cache_from_s3(
    tmp_path: Path, object_store: tuple[Any, list[Shard]]
) -> None:
    _, shards = object_store
    size_bytes = 3 * SHARD_BYTES + 100
    processes = [
        start_reader(
            tmp_path, "s3://corpus/data/train", shards, size_bytes=size_bytes, seed=seed, rounds=12
        )
        for seed in range(2)
    ]
    for process in processes:
        ends_right(process)
    assert used_bytes(tmp_path / "cache") <= size_bytes


def test_public_buckets_need_no_credentials(
    tmp_path: Path, object_store: tuple[Any, list[Shard]]
) -> None:
    _, shards = object_store
    environment = {name: value for name, value in os.environ.items() if "_KEY" not in name}
    options = {"size_bytes": 10**7, "rounds": 2}
    url = "s3://corpus/data/train"
    process = start_reader(tmp_path, url, shards[:1], environment=environment, **options)
    output, _ = process.communicate(timeout=60)
    assert "UnavailableError: cannot fetch s3://corpus" in output
    assert "FSSPEC_S3_ANON=true" in output
    environment["FSSPEC_S3_ANON"] = "true"
    ends_right(start_reader(tmp_path, url, shards[:1], environment=environment, **options))


def test_an_s3_side_that_cuts_or_is_silent(
    tmp_path: Path, object_store: tuple[Any, list[Shard]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy before the server ends connections within the answer, or never answers."""
    _, shards = object_store
    target = os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]
    with _Proxy(int(target)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        retry = RetrySettings(attempts=4, timeout_seconds=1.5, first_delay_seconds=0.01)
        settings = CacheSettings(folder=tmp_path / "cache", size_bytes=10**7, retry=retry)
        folder = RemoteFolder("s3://corpus/data/train", settings)
        proxy.limits_bytes = [100_000, 0]
        with os.fdopen(folder.open_shard(shards[0]), "rb") as file:
            assert xxhash.xxh3_128_hexdigest(file.read()) == shards[0].checksum
        assert not proxy.limits_bytes, "both faults were met"
        proxy.is_silent = True
        started_seconds = time.monotonic()
        with pytest.raises(DataError) as caught:
            folder.open_shard(shards[1])
        assert time.monotonic() - started_seconds < 15
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)
        folder.close()


class _Proxy:
    """Passes connections on, each answer up to the next limit."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.limits_bytes: list[int] = []
        self.is_silent = False
        self._open: list[Any] = []

    def __enter__(self) -> _Proxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for connection in [self._socket, *self._open]:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            self._open.append(client)
            if self.is_silent:
                continue
            target = socket.create_connection(("127.0.0.1", self._target_port))
            self._open.append(target)
            threading.Thread(target=self._pass, args=(client, target, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(target, client, True), daemon=True).start()

    def _pass(self, source: Any, sink: Any, is_answer: bool) -> None:
        try:
            while data := source.recv(65536):
                if is_answer and self.limits_bytes and len(data) > 2000:
                    sink.sendall(data[: self.limits_bytes.pop(0)])
                    break
                if self.is_silent:
                    time.sleep(10)
                sink.sendall(data)
        except OSError:
            pass
        for connection in (source, sink):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
