"""Shards made to do harm: refused or inert. A marker tells whether anything of them was executed.

Each test first shows that its weapon works on somebody: on `webdataset` with its defaults, on
`numpy.load` with pickles allowed, on `tarfile`. Otherwise an inert marker would prove nothing.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from foreign_tars import END, header, member

from data_pipeline.errors import DataError
from data_pipeline.files import readable_json
from data_pipeline.foreign.dataset import index_dataset
from data_pipeline.foreign.text_member import TextMember
from data_pipeline.foreign.webdataset_stream import WebdatasetStream
from data_pipeline.inspection.verify import verify_dataset
from data_pipeline.remote.dataset_folder import open_dataset_folder
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.shard_index import build_index
from data_pipeline.shards.tar_format import (
    document_key,
    member_header,
    metadata_json,
    npy_header,
    padding,
)
from data_pipeline.tokenization.tokenizer import DocumentTokenizer

DTYPE = np.dtype("<u2")


class Weapon:
    """Pickles into a call that makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "marker"
    yield path
    assert not path.exists(), "something was executed"


@pytest.fixture(scope="session")
def tokenizer(prose_data: Path) -> DocumentTokenizer:
    return DocumentTokenizer.load(prose_data / "tokenizer")


def works_on_somebody(marker: Path, action: Callable[[], object]) -> None:
    """The weapon goes off where nobody takes care."""
    with contextlib.suppress(Exception):
        action()
    assert marker.exists(), "the weapon is blunt, the test proves nothing"
    marker.rmdir() if marker.is_dir() else marker.unlink()


def object_npy(marker: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Weapon(marker)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def tar_of(members: dict[str, bytes]) -> bytes:
    return b"".join(member(name.encode(), data) for name, data in members.items()) + END


def everything_of_webdataset(tar: Path) -> list[Any]:
    return list(webdataset.WebDataset(str(tar), shardshuffle=False).decode())


@pytest.mark.parametrize("suffix", ["pyd", "pickle", "pkl", "pth"])
def test_pickles_beside_texts_are_never_loaded(
    suffix: str, tmp_path: Path, marker: Path, tokenizer: DocumentTokenizer, prose_data: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    content = pickle.dumps(Weapon(marker))
    if suffix == "pth":
        import torch

        buffer = io.BytesIO()
        torch.save(Weapon(marker), buffer)
        content = buffer.getvalue()
    tar = folder / "x.tar"
    tar.write_bytes(tar_of({f"a.{suffix}": content, "a.txt": b"harmless", "b.txt": b"text"}))
    works_on_somebody(marker, lambda: everything_of_webdataset(tar))
    stream = WebdatasetStream(folder, tokenizer, seed=0, epochs=1)
    assert [text.key for text in stream] == ["a", "b"]
    summary = index_dataset(folder, prose_data / "tokenizer")
    assert summary.passed_over == {suffix: 1}
    assert len(list(WebdatasetStream(folder, tokenizer, seed=0, epochs=1))) == 2
    # Asked for as text, it is bytes that are no text, never an object.
    (folder / "manifest.json").unlink()
    asked = WebdatasetStream(folder, tokenizer, TextMember(suffix=suffix), seed=0, epochs=1)
    assert len(list(asked)) + sum(asked.left_out.values()) == 1


@pytest.mark.parametrize("place", ["instead of the ids", "behind the ids"])
def test_object_arrays_in_a_shard_of_ours_are_refused(
    place: str, tmp_path: Path, marker: Path
) -> None:
    weapon = object_npy(marker)
    works_on_somebody(marker, lambda: np.load(io.BytesIO(weapon), allow_pickle=True))
    sound = npy_header(3, DTYPE) + np.arange(3, dtype=DTYPE).tobytes()
    key = document_key("shard-000000", 0)
    parts = []
    payloads = [weapon] if place == "instead of the ids" else [sound, weapon]
    for payload in payloads:
        parts += [member_header(f"{key}.tokens.npy", len(payload)), payload, padding(len(payload))]
    metadata = metadata_json("x")
    parts += [member_header(f"{key}.json", len(metadata)), metadata, padding(len(metadata)), END]
    tar = tmp_path / "shard-000000.tar"
    tar.write_bytes(b"".join(parts))
    with pytest.raises(DataError, match=r"shard-000000\.tar"):
        build_index(tar, DTYPE)


@pytest.mark.parametrize(
    "name", ["../../evil", "/evil", "a/../../evil", "shard-000000-000000.pickle", "x.pth"]
)
def test_other_members_in_a_shard_of_ours_are_refused(
    name: str, tmp_path: Path, marker: Path, prose_data: Path
) -> None:
    """A whole data set, one of whose shards got a member more."""
    folder = tmp_path / "data"
    shutil.copytree(prose_data / "train", folder)
    tar = folder / "shard-000000.tar"
    tar.write_bytes(member(name.encode(), pickle.dumps(Weapon(marker))) + tar.read_bytes())
    with pytest.raises(DataError, match=r"shard-000000\.tar"):
        build_index(tar, DTYPE)
    before = sorted(path for path in tmp_path.rglob("*"))
    report = verify_dataset(folder)
    assert not report.is_sound
    assert report.damages[0].shard == "shard-000000.tar"
    assert sorted(path for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "kind", "link"),
    [
        (b"secret.txt", b"2", b"/etc/passwd"),
        (b"secret.txt", b"1", b"../../etc/passwd"),
        (b"../outside.txt", b"0", b""),
        (b"/tmp/outside.txt", b"0", b""),
    ],
)
def test_links_and_names_that_lead_out_are_refused(
    name: bytes,
    kind: bytes,
    link: bytes,
    tmp_path: Path,
    tokenizer: DocumentTokenizer,
    prose_data: Path,
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    evil = header(name, b"0\0", kind, link=link)
    (folder / "x.tar").write_bytes(member(b"a.txt", b"harmless") + evil + END)
    with tarfile.open(folder / "x.tar") as tar:
        assert tar.getnames() == ["a.txt", name.decode()]
    with pytest.raises(DataError, match=r"x\.tar"):
        list(WebdatasetStream(folder, tokenizer, seed=0, epochs=1))
    with pytest.raises(DataError, match=r"x\.tar"):
        index_dataset(folder, prose_data / "tokenizer")
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "x.tar"]


def test_compressed_tars_are_never_unpacked(
    tmp_path: Path, tokenizer: DocumentTokenizer, prose_data: Path
) -> None:
    """A bomb: a kilobyte that unpacks to a hundred megabytes under webdataset."""
    bomb = tmp_path / "x.tar"
    with tarfile.open(bomb, "w:gz") as tar:
        info = tarfile.TarInfo("a.txt")
        info.size = 10**8
        with (Path("/dev/zero")).open("rb") as zeros:
            tar.addfile(info, zeros)
    assert bomb.stat().st_size < 10**6
    for action in (
        lambda: list(WebdatasetStream(tmp_path, tokenizer, seed=0, epochs=1)),
        lambda: index_dataset(tmp_path, prose_data / "tokenizer"),
    ):
        with pytest.raises(DataError, match="this is no uncompressed tar"):
            action()


class TestPipes:
    """Names of shards that are commands to others."""

    def test_of_folders(self, marker: Path, tokenizer: DocumentTokenizer, prose_data: Path) -> None:
        command = f"pipe:touch {marker}"
        works_on_somebody(marker, lambda: list(webdataset.WebDataset(command, shardshuffle=False)))
        for url in (command, command.upper(), f"{command}::x", f"simplecache::{command}"):
            with pytest.raises(DataError, match="no URL this program reads"):
                open_dataset_folder(url)
            with pytest.raises(DataError):
                WebdatasetStream(url, tokenizer, seed=0)
            with pytest.raises(DataError):
                index_dataset(url, prose_data / "tokenizer")

    @pytest.mark.parametrize(
        "file",
        [
            "pipe:touch {marker}",
            "pipe:touch {marker}.tar",
            "../x.tar",
            "/etc/x.tar",
            "http://host/x.tar",
            "shard-000000.tar\n",
            "a/b.tar",
            "..",
            ".hidden.tar",
            "",
        ],
    )
    @pytest.mark.parametrize("kind", ["tokens", "text"])
    def test_in_manifests(
        self,
        file: str,
        kind: str,
        tmp_path: Path,
        marker: Path,
        tokenizer: DocumentTokenizer,
        prose_data: Path,
    ) -> None:
        folder = tmp_path / "data"
        folder.mkdir()
        if kind == "tokens":
            value = Manifest.load(prose_data / "train").to_dict()
        else:
            (folder / "x.tar").write_bytes(tar_of({"a.txt": b"text"}))
            index_dataset(folder, prose_data / "tokenizer")
            value = json.loads((folder / "manifest.json").read_text())
        shard = value["shards"][0]
        shard = shard if isinstance(shard, dict) else vars(shard)
        value["shards"][0] = dict(shard) | {"file": file.format(marker=marker)}
        (folder / "manifest.json").write_bytes(readable_json(value))
        load: Callable[[Path], object] = Manifest.load
        if kind == "text":
            load = partial(WebdatasetStream, tokenizer=tokenizer, seed=0)
        with pytest.raises(DataError, match=r"manifest\.json") as caught:
            load(folder)
        assert "\n" not in str(caught.value)


def test_environment_of_webdataset_changes_nothing(
    tmp_path: Path, marker: Path, tokenizer: DocumentTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can be told to rewrite names into commands; it gets no names of us."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "x.tar").write_bytes(tar_of({"a.txt": b"text"}))
    monkeypatch.setenv("GOPEN_REWRITE", f".*=pipe:touch {marker}")
    url = "http://127.0.0.1:9/x.tar"
    works_on_somebody(marker, lambda: list(webdataset.WebDataset(url, shardshuffle=False)))
    assert len(list(WebdatasetStream(folder, tokenizer, seed=0, epochs=1))) == 1


def test_nothing_here_unpickles_or_calls_a_shell() -> None:
    """The words themselves are absent from the room."""
    room = Path(sys.modules["data_pipeline"].__file__ or "").parent
    forbidden = ("import pickle", "allow_pickle=True", "shell=True", "os.system", "eval(", "exec(")
    for path in room.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not [word for word in forbidden if word in text], path
