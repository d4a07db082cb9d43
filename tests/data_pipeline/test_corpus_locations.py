"""Finding and opening corpora: folders, patterns, compressed files, and URLs of real servers."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from faulty_server import FaultyServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.corpora import corpus_locations
from data_pipeline.corpora.corpus import find_files, iterate_documents
from data_pipeline.corpora.corpus_locations import open_location
from data_pipeline.errors import DataError

TEXTS = [f"document {number}\n" + "żółć " * number for number in range(300)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The same documents in every format, each in a folder of its own."""
    folder = tmp_path / "corpus"
    lines = "".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(TEXTS))
    packer = zstandard.ZstdCompressor()
    middle = len(lines) // 2
    contents = {
        "plain/a.jsonl": lines.encode(),
        "gz/a.jsonl.gz": gzip.compress(lines.encode()),
        # Two frames, as tools that append write them.
        "zst/a.jsonl.zst": packer.compress(lines[:middle].encode())
        + packer.compress(lines[middle:].encode()),
        "mixed/notes.md": b"# ignored",
        "mixed/b/one.txt": b"one",
        "mixed/b/.hidden.txt": b"hidden",
        "mixed/two.txt": b"two",
        "mixed/b/c/three.txt": b"three",
    }
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "parquet").mkdir()
    table = pyarrow.table({"id": [str(n) for n in range(len(TEXTS))], "text": TEXTS})
    pyarrow.parquet.write_table(table, folder / "parquet" / "a.parquet", row_group_size=70)
    return folder


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    pytest.importorskip("aiohttp", reason="the extra remote is not installed")
    monkeypatch.setattr(corpus_locations, "_FIRST_PAUSE_SECONDS", 0.01)
    with FaultyServer(folder) as server:
        yield server


FILES = ("plain/a.jsonl", "gz/a.jsonl.gz", "zst/a.jsonl.zst", "parquet/a.parquet")


def texts_of(*inputs: Path | str) -> list[str]:
    return [document.text for document in iterate_documents(inputs)]


def test_every_compression_gives_the_same_documents(folder: Path) -> None:
    for file in FILES:
        assert texts_of(folder / file) == TEXTS, file
        assert texts_of(f"file://{folder / file}") == TEXTS, file


def test_patterns_find_files_at_any_depth_and_keep_names_apart(folder: Path) -> None:
    def names(pattern: str) -> list[str]:
        return [file.name for file in find_files([str(folder / pattern)])[0]]

    assert names("mixed/*.txt") == ["two.txt"]
    assert names("mixed/**/*.txt") == ["b/c/three.txt", "b/one.txt", "two.txt"]
    assert names("mixed/**") == ["b/c/three.txt", "b/one.txt", "two.txt"]
    assert names("mixed/[a-c]/?ne.txt") == ["b/one.txt"]
    assert names("*/a.jsonl*") == ["gz/a.jsonl.gz", "plain/a.jsonl", "zst/a.jsonl.zst"]
    assert find_files([str(folder / "mixed" / "**")])[1] == 1
    literal = folder / "odd[1].txt"
    literal.write_text("literal")
    assert texts_of(str(literal)) == ["literal"]
    with pytest.raises(DataError, match=r"matches no file: check the spelling"):
        names("mixed/*.jsonl")
    sources = [file.source for file in find_files([folder / "plain", folder / "mixed"])[0]]
    assert sources == [0, 1, 1, 1]


@pytest.mark.parametrize(
    "url",
    [
        "pipe:cat /etc/passwd",
        "ftp://host/a.txt",
        "zip://a.txt::s3://bucket/a.zip",
        "simplecache::s3://bucket/a.jsonl",
        "file://elsewhere/a.txt",
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(DataError):
        find_files([url])


@pytest.mark.parametrize("has_ranges", [True, False])
def test_files_are_read_from_a_web_server(
    folder: Path, server: FaultyServer, has_ranges: bool
) -> None:
    server.has_ranges = has_ranges
    for file in FILES:
        assert texts_of(f"{server.url}/{file}?version=1") == TEXTS, file


def test_a_web_server_with_hiccups_is_asked_again(
    folder: Path, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small reads, so that faults strike in the middle of the file.
    monkeypatch.setattr(corpus_locations, "_REMOTE_BUFFER_BYTES", 2**15)
    size_bytes = (folder / "plain/a.jsonl").stat().st_size
    assert size_bytes > 4 * 2**15
    server.plan("a.jsonl", "ok", 503, ("cut", 1000), "ok", ("cut", 0), 500)
    assert texts_of(f"{server.url}/plain/a.jsonl") == TEXTS
    starts = [start for _, start in server.requests]
    assert len(set(starts)) < len(starts), "something was asked for twice"


def test_a_web_server_that_stays_away_is_one_clear_line(server: FaultyServer) -> None:
    server.always["a.jsonl"] = 500
    with pytest.raises(DataError, match=r"cannot read http.*/a.jsonl \(4 attempts, the last: "):
        texts_of(f"{server.url}/plain/a.jsonl?signature=secret")
    with pytest.raises(DataError) as error:
        texts_of(f"{server.url}/plain/missing.jsonl?signature=secret")
    assert "1 attempts" in str(error.value)
    assert "secret" not in str(error.value)


def test_seeking_in_a_remote_file(folder: Path, server: FaultyServer) -> None:
    data = (folder / "plain/a.jsonl").read_bytes()
    for has_ranges in (True, False):
        server.has_ranges = has_ranges
        with open_location(f"{server.url}/plain/a.jsonl") as stream:
            for place in (1000, 90_000, 5, len(data) - 7, len(data)):
                stream.seek(place)
                assert stream.read(3000) == data[place : place + 3000]


@pytest.mark.slow
def test_folders_and_patterns_on_s3(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not all(find_spec(name) for name in ("moto", "s3fs", "boto3")):
        pytest.skip("needs moto[s3,server] and s3fs")
    import boto3
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket="corpora")
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                client.upload_file(str(path), "corpora", path.relative_to(folder).as_posix())
        corpus_locations._filesystem_of.cache_clear()
        for file in FILES:
            assert texts_of(f"s3://corpora/{file}") == TEXTS, file
        files, num_ignored = find_files(["s3://corpora/mixed", "s3://corpora/*/a.jsonl"])
        assert [file.name for file in files] == [
            *("b/c/three.txt", "b/one.txt", "two.txt"),
            "plain/a.jsonl",
        ]
        assert num_ignored == 1
        assert all(file.version and file.size_bytes for file in files)
        with pytest.raises(DataError, match="s3://corpora/nothing"):
            find_files(["s3://corpora/nothing/*.txt"])
    finally:
        corpus_locations._filesystem_of.cache_clear()
        server.stop()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**9), kind=st.sampled_from(["cut", "flip"]))
def test_a_damaged_zstandard_file_is_an_error(folder: Path, place: int, kind: str) -> None:
    """With a checksum in each frame, as the zstd tool writes it, nothing passes."""
    packer = zstandard.ZstdCompressor(write_checksum=True)
    data = packer.compress((folder / "plain/a.jsonl").read_bytes())
    if kind == "cut":
        damaged = data[: 1 + place % (len(data) - 1)]
    else:
        place %= len(data)
        damaged = data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]
    path = folder / "zst" / "bad.jsonl.zst"
    path.write_bytes(damaged)
    try:
        texts = texts_of(path)
    except DataError as error:
        message = str(error)
    else:
        # Only bits that mean nothing may pass.
        assert (texts, kind) == (TEXTS, "flip")
        return
    assert "bad.jsonl.zst is a corrupt zstandard file" in message
