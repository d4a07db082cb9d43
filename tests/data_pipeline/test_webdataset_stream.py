"""Streaming through webdataset: exact resume, every text once, no damage unseen."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from faulty_server import FaultyServer
from foreign_tars import END, hostile_tars, member, write_tar
from hypothesis import given
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_expander

from data_pipeline.errors import DataError
from data_pipeline.foreign.dataset import index_dataset
from data_pipeline.foreign.text_member import TextMember
from data_pipeline.foreign.text_shards import load_text_index
from data_pipeline.foreign.webdataset_stream import ReaderPlace, StreamedText, WebdatasetStream
from data_pipeline.remote.dataset_folder import CacheSettings, RetrySettings
from data_pipeline.tokenization.tokenizer import DocumentTokenizer

SIZES = (7, 1, 12, 5, 9)


@pytest.fixture(scope="session")
def tokenizer(prose_data: Path) -> DocumentTokenizer:
    return DocumentTokenizer.load(prose_data / "tokenizer")


def content(number: int) -> str:
    return f"Text number {number} " + "of many words " * (number % 7) + "ends."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tars with a picture and a class beside each text, and a text that is none in each."""
    path, number = tmp_path / "data", 0
    path.mkdir()
    for part, size in enumerate(SIZES):
        members: dict[str, bytes] = {"broken.txt": b"\xff"}
        for _ in range(size):
            members |= {
                f"s{number:03d}.cls": b"1",
                f"s{number:03d}.jpg": b"\xff\xd8",
                f"s{number:03d}.txt": content(number).encode(),
            }
            number += 1
        formats = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
        write_tar(path / f"part{part}.tar", members, formats[part % 3])
    return path


def as_plain(texts: list[StreamedText]) -> list[tuple[str, str, list[int]]]:
    return [(text.file, text.key, text.tokens.tolist()) for text in texts]


def take(stream: WebdatasetStream, number: int | None = None) -> list[tuple[str, str, list[int]]]:
    return as_plain(list(islice(stream, number)))


def test_an_epoch_is_every_text_once_with_its_ids(
    folder: Path, tokenizer: DocumentTokenizer
) -> None:
    stream = WebdatasetStream(folder, tokenizer, seed=1, epochs=2)
    found = take(stream)
    total = sum(SIZES)
    for epoch in (found[:total], found[total:]):
        by_key = {key: ids for _, key, ids in epoch}
        assert len(by_key) == total
        for number in range(total):
            ids = [*tokenizer.encode(content(number)).tolist(), tokenizer.eos_token_id]
            assert by_key[f"s{number:03d}"] == ids
    order = [list(dict.fromkeys(file for file, _, _ in part)) for part in (found[:34], found[34:])]
    assert sorted(order[0]) == sorted(order[1])
    assert order[0] != order[1], "tars are shuffled anew"
    assert stream.left_out == {"no UTF-8": 2 * len(SIZES)}
    other = take(WebdatasetStream(folder, tokenizer, seed=2, epochs=1))
    assert other != found[:total]


@pytest.mark.parametrize("is_indexed", [False, True])
def test_resume_anywhere_equals_never_stopping(
    folder: Path, tokenizer: DocumentTokenizer, prose_data: Path, is_indexed: bool
) -> None:
    if is_indexed:
        index_dataset(folder, prose_data / "tokenizer")
    whole = take(WebdatasetStream(folder, tokenizer, seed=3, epochs=3))
    places = random.Random(5)
    for _ in range(12):
        done, found, state = 0, [], None
        while True:
            stream = WebdatasetStream(folder, tokenizer, seed=3, epochs=3)
            if state is not None:
                stream.load_state_dict(json.loads(json.dumps(state)))
            part = take(stream, places.randint(0, 40))
            found += part
            state = stream.state_dict()
            done += len(part)
            if done >= len(whole):
                break
        assert found == whole
        assert take(stream) == []


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 2), (2, 1), (2, 2), (3, 3)])
def test_readers_share_every_epoch(
    folder: Path, tokenizer: DocumentTokenizer, world_size: int, num_workers: int
) -> None:
    """Also with more readers than tars: some then begin with the next epoch."""
    epochs = 6
    counts: Counter[str] = Counter()
    for rank in range(world_size):
        for worker in range(num_workers):
            place = ReaderPlace(rank, world_size, worker, num_workers)
            stream = WebdatasetStream(folder, tokenizer, seed=4, place=place, epochs=epochs)
            first = take(stream, 3)
            resumed = WebdatasetStream(folder, tokenizer, seed=4, place=place, epochs=epochs)
            resumed.load_state_dict(stream.state_dict())
            counts.update(key for _, key, _ in first + take(resumed))
    assert set(counts.values()) == {epochs}
    assert len(counts) == sum(SIZES)


def test_a_state_of_anything_else_is_refused(
    folder: Path, tokenizer: DocumentTokenizer, tmp_path: Path
) -> None:
    stream = WebdatasetStream(folder, tokenizer, seed=3)
    take(stream, 10)
    state = stream.state_dict()
    others = [
        WebdatasetStream(folder, tokenizer, seed=4),
        WebdatasetStream(folder, tokenizer, TextMember(suffix="json"), seed=3),
        WebdatasetStream(folder, tokenizer, seed=3, place=ReaderPlace(0, 2)),
    ]
    write_tar(folder / "part9.tar", {"a.txt": b"x"}, tarfile.USTAR_FORMAT)
    others.append(WebdatasetStream(folder, tokenizer, seed=3))
    for other in others:
        with pytest.raises(DataError, match="other tars, options or readers"):
            other.load_state_dict(state)
    for harm in (
        {"version": 9},
        {"epoch": -1},
        {"samples": True},
        {"shard": 2**70},
        {"epoch": "1"},
    ):
        with pytest.raises(DataError):
            stream.load_state_dict(state | harm)
    with pytest.raises(DataError):
        ReaderPlace(2, 2)


@pytest.mark.parametrize("is_indexed", [False, True])
def test_damage_that_webdataset_passes_over_is_an_error(
    folder: Path, tokenizer: DocumentTokenizer, prose_data: Path, is_indexed: bool
) -> None:
    """Cuts, zero pages and flipped bits in headers always; in texts where there is an index."""
    if is_indexed:
        index_dataset(folder, prose_data / "tokenizer")
    tar = folder / "part2.tar"
    sound = tar.read_bytes()
    whole = take(WebdatasetStream(folder, tokenizer, seed=1, epochs=1))
    with tarfile.open(tar) as opened:
        headers = [info.offset for info in opened]
        contents = [
            (info.offset_data, info.size)
            for info in opened
            if info.name.startswith("s") and info.name.endswith(".txt")
        ]
    places = random.Random(6)
    silent = 0
    for trial in range(60):
        harmed = bytearray(sound)
        kind = ("cut at an edge", "cut", "zeros", "header", "text")[trial % 5]
        if kind == "cut at an edge":
            del harmed[places.choice(headers[1:]) :]
        elif kind == "cut":
            del harmed[places.randrange(1, headers[-1]) :]
        elif kind == "zeros":
            start = places.choice(headers)
            harmed[start : start + 2048] = bytes(2048)
        elif kind == "header":
            harmed[places.choice(headers) + places.randrange(0, 257)] ^= 1 << places.randrange(8)
        else:
            offset, size = places.choice(contents)
            harmed[offset + places.randrange(size)] ^= 1 << places.randrange(7)
        tar.write_bytes(harmed)
        silent += is_silent_in_webdataset(tar)
        stream = WebdatasetStream(folder, tokenizer, seed=1, epochs=1)
        if kind == "text" and not is_indexed:
            assert len(take(stream)) + sum(stream.left_out.values()) == len(whole) + len(SIZES)
            continue
        with pytest.raises(DataError, match=r"part2\.tar"):
            take(stream)
    assert silent > 20, "webdataset itself says nothing to many of these"


def test_a_tar_that_is_cut_while_it_is_read_is_an_error(
    tmp_path: Path, tokenizer: DocumentTokenizer
) -> None:
    """At the edge of a member, where webdataset takes the end for a good one."""
    members = {f"s{number:03d}.txt": b"some words " * 1000 for number in range(100)}
    tar = write_tar(tmp_path / "x.tar", members, tarfile.USTAR_FORMAT)
    with tarfile.open(tar) as opened:
        edge = opened.getmembers()[80].offset
    stream = iter(WebdatasetStream(tmp_path, tokenizer, seed=0, epochs=1))
    assert next(stream).key == "s000"
    os.truncate(tar, edge)
    with pytest.raises(DataError, match=r"webdataset gives 80 of its 100 texts"):
        list(stream)


def is_silent_in_webdataset(tar: Path) -> bool:
    try:
        with tar.open("rb") as file:
            list(group_by_keys(tar_file_expander([{"url": "x", "stream": file}])))
    except Exception:
        return False
    return True


@pytest.mark.parametrize("name", hostile_tars())
def test_hostile_tars_are_one_line(name: str, tmp_path: Path, tokenizer: DocumentTokenizer) -> None:
    (tmp_path / "x.tar").write_bytes(hostile_tars()[name])
    with pytest.raises(DataError) as caught:
        take(WebdatasetStream(tmp_path, tokenizer, seed=0, epochs=1))
    assert "\n" not in str(caught.value)


@given(st.lists(st.from_regex(r"[a-c_./]{1,12}\.?(txt|TXT|jpg|json)?", fullmatch=True), max_size=8))
def test_text_members_are_told_apart_as_webdataset_does(names: list[str]) -> None:
    import io

    names = [name for name in names if not name.startswith("/") and ".." not in name.split("/")]
    names = [name for name in dict.fromkeys(names) if not name.endswith("/")]
    data = b"".join(member(name.encode(), b"x") for name in names) + END
    text_member = TextMember()
    expected = [key for key in map(text_member.key_of, names) if key is not None]
    files = tar_file_expander([{"url": "x", "stream": io.BytesIO(data)}])
    try:
        found = [sample["__key__"] for sample in group_by_keys(files) if "txt" in sample]
    except ValueError:
        return
    # A sample comes apart for webdataset where members of another lie between.
    assert found == expected


def test_pipes_and_other_urls_are_refused(tmp_path: Path, tokenizer: DocumentTokenizer) -> None:
    marker = tmp_path / "marker"
    for url in (f"pipe:touch {marker}", f"pipe:touch {marker}.tar", "ftp://host/x", "sftp://h/x"):
        with pytest.raises(DataError):
            WebdatasetStream(url, tokenizer, seed=0)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"pipe:touch {marker.name}.tar").write_bytes(END)
    with pytest.raises(DataError, match="is no name of a file"):
        take(WebdatasetStream(tmp_path / "data", tokenizer, seed=0, epochs=1))
    assert not marker.exists()


def test_indexed_tars_stream_over_http(
    folder: Path, tokenizer: DocumentTokenizer, prose_data: Path, tmp_path: Path
) -> None:
    index_dataset(folder, prose_data / "tokenizer")
    whole = take(WebdatasetStream(folder, tokenizer, seed=3, epochs=1))
    with FaultyServer(folder) as server:
        for part in range(5):
            server.plan(f"part{part}.tar", ("cut", 2000), 503)
        retry = RetrySettings(first_delay_seconds=0.01, timeout_seconds=5)
        cache = CacheSettings(folder=tmp_path / "cache", size_bytes=10**6, retry=retry)
        stream = WebdatasetStream(server.url, tokenizer, seed=3, epochs=1, cache=cache)
        assert take(stream) == whole
        stream.close()
        for copy in cache.folder.glob("*.data"):
            data = bytearray(copy.read_bytes())
            if len(data) > 10_000:
                data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
                copy.write_bytes(data)
        stream = WebdatasetStream(server.url, tokenizer, seed=3, epochs=1, cache=cache)
        assert take(stream) == whole, "damaged copies are fetched again, nothing comes twice"
        stream.close()
        (folder / "manifest.json").unlink()
        with pytest.raises(DataError, match=r"manifest\.json is missing"):
            WebdatasetStream(server.url, tokenizer, seed=3, cache=cache)


def test_manifest_and_arguments_must_agree(
    folder: Path, tokenizer: DocumentTokenizer, prose_data: Path
) -> None:
    index_dataset(folder, prose_data / "tokenizer")
    with pytest.raises(DataError, match="another text member or tokenizer"):
        WebdatasetStream(folder, tokenizer, TextMember(suffix="json"), seed=0)
    with pytest.raises(DataError, match="not of a data set whose tars hold texts"):
        WebdatasetStream(prose_data / "train", tokenizer, seed=0)
    (folder / "manifest.json").unlink()
    (folder / "part1.tar").unlink()
    for path in folder.glob("*.tar"):
        path.unlink()
    with pytest.raises(DataError, match="neither a manifest nor a file"):
        WebdatasetStream(folder, tokenizer, seed=0)


def test_the_index_and_the_stream_see_the_same_texts(
    folder: Path, tokenizer: DocumentTokenizer, prose_data: Path
) -> None:
    index_dataset(folder, prose_data / "tokenizer")
    stream = WebdatasetStream(folder, tokenizer, seed=0, epochs=1)
    lengths = Counter(len(ids) for _, _, ids in take(stream))
    indexed: Counter[int] = Counter()
    for info in stream._tars:
        indexed.update(load_text_index(stream._folder, info).lengths_tokens.tolist())
    assert lengths == indexed
    (folder / "part0.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"part0\.tar is damaged"):
        take(WebdatasetStream(folder, tokenizer, seed=0, epochs=1))


def test_importing_loads_no_torch() -> None:
    program = (
        "import sys, data_pipeline.foreign.webdataset_stream, data_pipeline.foreign.dataset; "
        "sys.exit('torch' in sys.modules or 'webdataset' in sys.modules or 'fsspec' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
