"""The bytes of a shard: what numpy and tar programs write and read, and nothing else."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.shards.manifest import ShardInfo
from data_pipeline.shards.shard_index import ShardIndex, build_index, index_checksum
from data_pipeline.shards.shard_writer import finished_shard, write_shard
from data_pipeline.shards.tar_format import (
    MAXIMUM_MEMBER_BYTES,
    document_key,
    member_header,
    metadata_json,
    npy_header,
    padding,
    tokens_from_npy,
)

TWO, FOUR = np.dtype("<u2"), np.dtype("<u4")
DOCUMENTS = [
    ("plain", [5, 6, 1]),
    ("żółć/日本 \n\x00 \ud800", [1]),
    ("long", [*range(2, 2000), 1]),
]


def write(
    folder: Path, documents: list[tuple[str, list[int]]], dtype: Any = TWO, number: int = 12
) -> ShardInfo:
    folder.mkdir(exist_ok=True)
    pairs = ((name, np.array(tokens, dtype)) for name, tokens in documents)
    return write_shard(folder, number, pairs, np.dtype(dtype))


@settings(deadline=None)
@given(length=st.integers(0, 2**40), dtype=st.sampled_from([TWO, FOUR]))
def test_npy_headers_are_those_of_numpy(length: int, dtype: np.dtype[Any]) -> None:
    header = npy_header(length, dtype)
    assert len(header) == 128
    reference = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        reference, {"descr": dtype.str, "fortran_order": False, "shape": (length,)}
    )
    assert header == reference.getvalue()


def test_npy_contents_are_those_of_numpy() -> None:
    tokens = np.arange(1000, dtype=TWO)
    reference = io.BytesIO()
    np.save(reference, tokens)
    read = tokens_from_npy(reference.getvalue(), TWO)
    assert read is not None
    assert np.array_equal(read, tokens)
    for bad in (reference.getvalue()[:-1], b"", reference.getvalue() + b"\0\0"):
        assert tokens_from_npy(bad, TWO) is None
    assert tokens_from_npy(reference.getvalue(), FOUR) is None
    objects = io.BytesIO()
    np.save(objects, np.array([print], dtype=object), allow_pickle=True)
    assert tokens_from_npy(objects.getvalue().ljust(128 + 16), TWO) is None


@settings(deadline=None)
@given(size=st.integers(0, MAXIMUM_MEMBER_BYTES), number=st.integers(0, 10**9))
def test_headers_are_those_of_tar(size: int, number: int) -> None:
    name = document_key("shard-000001", number) + ".tokens.npy"
    header = member_header(name, size)
    read = tarfile.TarInfo.frombuf(header, "ascii", "strict")
    assert (read.name, read.size, read.mode, read.mtime) == (name, size, 0o444, 0)
    assert (read.uid, read.gid, read.uname, read.gname, read.type) == (0, 0, "", "", b"0")
    assert len(padding(size)) == -size % 512


def test_a_member_too_long_for_tar_is_an_error() -> None:
    with pytest.raises(DataError, match="a tar member at most 8589934591: split the document"):
        member_header("x", MAXIMUM_MEMBER_BYTES + 1)


@pytest.mark.parametrize("dtype", [TWO, FOUR])
def test_every_reader_of_tars_reads_a_shard(tmp_path: Path, dtype: np.dtype[Any]) -> None:
    info = write(tmp_path / "d", DOCUMENTS, dtype)
    path = tmp_path / "d" / "shard-000012.tar"
    assert path.name == info.file
    names = [
        f"shard-000012-{position:06d}.{suffix}"
        for position in range(3)
        for suffix in ("tokens.npy", "json")
    ]
    with tarfile.open(path, "r:") as tar:
        assert tar.getnames() == names
        assert tar.pax_headers == {}
        members = {member.name: member for member in tar.getmembers()}
        for member in members.values():
            assert member.mtime == 0
            assert member.isreg()
            assert member.pax_headers == {}
        for position, (name, tokens) in enumerate(DOCUMENTS):
            key = document_key("shard-000012", position)
            content = tar.extractfile(members[f"{key}.tokens.npy"])
            assert content is not None
            # Alignment lets a reader map the ids directly.
            assert members[f"{key}.tokens.npy"].offset_data % 512 == 0
            assert np.load(io.BytesIO(content.read()), allow_pickle=False).tolist() == tokens
            metadata = tar.extractfile(members[f"{key}.json"])
            assert metadata is not None
            assert json.loads(metadata.read()) == {"name": name}
    if shutil.which("tar"):
        (tmp_path / "out").mkdir()
        subprocess.run(["tar", "xf", path, "-C", tmp_path / "out"], check=True)
        assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(names)
        loaded = np.load(tmp_path / "out" / names[-2])
        assert loaded.tolist() == DOCUMENTS[2][1]


def test_webdataset_reads_a_shard_with_its_own_decoders(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    write(tmp_path / "d", DOCUMENTS)
    path = str(tmp_path / "d" / "shard-000012.tar")
    samples = list(webdataset.WebDataset(path, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [
        document_key("shard-000012", position) for position in range(3)
    ]
    for sample, (name, tokens) in zip(samples, DOCUMENTS, strict=True):
        assert sample["tokens.npy"].tolist() == tokens
        assert sample["json"] == {"name": name}


@settings(deadline=None, max_examples=30)
@given(
    documents=st.lists(
        st.tuples(
            st.text(max_size=300),
            st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=400),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_the_index_follows_from_the_bare_tar(
    tmp_path_factory: pytest.TempPathFactory, documents: list[tuple[str, list[int]]]
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    info = write(folder, documents)
    stored = (folder / info.index_file).read_bytes()
    seen = []
    rebuilt = build_index(
        folder / info.file, TWO, lambda document, tokens: seen.append(tokens.tolist())
    )
    assert rebuilt.to_bytes() == stored
    assert seen == [tokens for _, tokens in documents]
    assert index_checksum(stored) == info.index_checksum
    index = ShardIndex.from_bytes(stored)
    assert index.to_bytes() == stored
    assert (index.documents, index.tokens) == (info.documents, info.tokens)
    assert index.tar_bytes == info.size_bytes == (folder / info.file).stat().st_size
    assert finished_shard(folder, 12) == info


def test_the_bytes_never_change(tmp_path: Path) -> None:
    info = write(tmp_path / "d", DOCUMENTS)
    assert (info.checksum, info.index_checksum) == GOLDEN_CHECKSUMS


# Frozen: a change here is a new format and needs a new format version.
GOLDEN_CHECKSUMS = ("ee8b3e7e16146c5d3d2433104bf5c30a", "09ace2599e81347147d9c1c346234e0f")


def damaged_index_reason(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        build_index(path, TWO)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_damage_of_the_layout_is_named(tmp_path: Path) -> None:
    info = write(tmp_path / "d", DOCUMENTS)
    path = tmp_path / "d" / info.file
    sound = path.read_bytes()
    index = ShardIndex.from_bytes(path.with_suffix(".idx").read_bytes())

    def changed(offset: int, value: int) -> str:
        path.write_bytes(sound[:offset] + bytes([value]) + sound[offset + 1 :])
        return damaged_index_reason(path)

    second = int(index.offsets_bytes[1])
    assert "shard-000012-000001: the header of" in changed(second - 512, 0xFF)
    assert "shard-000012-000001: its .npy header is damaged" in changed(second + 3, 0xFF)
    assert "000001: the filling behind" in changed(second + 400, 1)
    assert "000003: the end of the tar is damaged" in changed(len(sound) - 1, 1)
    for length, expected in {
        second - 512: "000001: the shard is cut off before",
        second + 60: "000001: the shard is cut off within",
        second - 100: "000001: the shard is cut off before",
        len(sound) - 512: "000003: the end of the tar is damaged",
        0: "000000: the shard is cut off before",
    }.items():
        path.write_bytes(sound[:length])
        assert expected in damaged_index_reason(path)
    path.write_bytes(sound + b"more")
    assert "the end of the tar is damaged" in damaged_index_reason(path)


@settings(deadline=None, max_examples=60)
@given(flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1))
def test_any_damage_is_found_or_changes_the_checksum(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    info = write(folder, DOCUMENTS)
    data = bytearray((folder / info.file).read_bytes())
    sound = bytes(data)
    for place, value in flips:
        data[place % len(data)] ^= value
    (folder / info.file).write_bytes(data)
    try:
        rebuilt = build_index(folder / info.file, TWO)
    except DataError:
        return
    assert (rebuilt.tar_checksum == info.checksum) == (bytes(data) == sound)


def foreign_tar(path: Path, *, name: str, content: bytes, kind: bytes = b"0") -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        member.type = kind
        member.linkname = "/etc/passwd" if kind == b"2" else ""
        tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("shard-000012-000000.pyd", b"0"),
        ("shard-000012-000000.pth", b"0"),
        ("shard-000012-000000.pickle", b"0"),
        ("../../evil.tokens.npy", b"0"),
        ("/abs/evil.tokens.npy", b"0"),
        ("shard-000012-000000.tokens.npy", b"2"),
        ("shard-000012-000000.tokens.npy", b"1"),
        ("shard-000012-000000.tokens.npy", b"5"),
        ("shard-000012-000001.tokens.npy", b"0"),
    ],
)
def test_foreign_members_are_refused(tmp_path: Path, name: str, kind: bytes) -> None:
    path = tmp_path / "shard-000012.tar"
    foreign_tar(path, name=name, content=b"" if kind != b"0" else b"cos\nsystem\n.", kind=kind)
    assert "a foreign member" in damaged_index_reason(path)


def test_object_arrays_are_refused(tmp_path: Path) -> None:
    payload = io.BytesIO()
    np.save(payload, np.array([{}], dtype=object), allow_pickle=True)
    content = payload.getvalue()
    path = tmp_path / "shard-000012.tar"
    metadata = metadata_json("x")
    path.write_bytes(
        member_header("shard-000012-000000.tokens.npy", len(content))
        + content
        + padding(len(content))
        + member_header("shard-000012-000000.json", len(metadata))
        + metadata
        + padding(len(metadata))
        + bytes(1024)
    )
    assert "its .npy header is damaged" in damaged_index_reason(path)


def test_a_header_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard-000012.tar"
    path.write_bytes(member_header("shard-000012-000000.tokens.npy", 8 * 10**9) + bytes(600))
    assert "cut off within" in damaged_index_reason(path)


def test_damaged_index_files_are_refused(tmp_path: Path) -> None:
    info = write(tmp_path / "d", DOCUMENTS)
    data = (tmp_path / "d" / info.index_file).read_bytes()
    for bad in (
        b"",
        b"SPADEIDX",
        data[:-1],
        data + b"\0",
        b"X" + data[1:],
        data[:8] + b"\7" + data[9:],
    ):
        with pytest.raises(DataError):
            ShardIndex.from_bytes(bad)


def test_unfinished_or_damaged_shards_do_not_count_as_finished(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    info = write(folder, DOCUMENTS)
    tar, index = folder / info.file, folder / info.index_file
    sound, sound_index = tar.read_bytes(), index.read_bytes()
    for path, content in (
        (tar, sound[:-1]),
        (tar, sound[:700] + b"\xff" + sound[701:]),
        (index, sound_index[:-1]),
        (index, b""),
    ):
        tar.write_bytes(sound)
        index.write_bytes(sound_index)
        assert finished_shard(folder, 12) == info
        path.write_bytes(content)
        assert finished_shard(folder, 12) is None
        path.unlink()
        assert finished_shard(folder, 12) is None


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    def documents() -> Any:
        yield "one", np.array([1], TWO)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path, 0, documents(), TWO)
    assert list(tmp_path.iterdir()) == []
