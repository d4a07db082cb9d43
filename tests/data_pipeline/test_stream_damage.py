"""Damage of any kind is named by shard and document; wrong tokens never come out."""

from __future__ import annotations

import json
import os
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streams import open_stream, stream_settings

from data_pipeline.errors import DataError
from data_pipeline.objectives.span_corruption import SpanCorruption
from data_pipeline.reading import shard_reader
from data_pipeline.reading.batch_loader import BatchLoader, Stripes
from data_pipeline.reading.stream import PretrainingStream
from data_pipeline.shards.manifest import Manifest
from data_pipeline.tokenization.tokenizer import DocumentTokenizer


@pytest.fixture(scope="module")
def train(prose_data: Path) -> Path:
    return prose_data / "train"


def read_everything(stream: PretrainingStream) -> np.ndarray:
    """All windows of an epoch."""
    return stream.read(stream.locate(np.arange(stream.samples_per_epoch["a"]))).tokens


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage stays: nothing is gained by waiting before reading it again."""
    monkeypatch.setattr(shard_reader, "_RETRY_SECONDS", (0.0, 0.0))


@pytest.fixture
def copy(train: Path, tmp_path: Path) -> Path:
    shutil.copytree(train, tmp_path / "train")
    return tmp_path / "train"


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_reaches_the_consumer_of_a_loader(copy: Path, workers: int) -> None:
    for path in copy.glob("*.tar"):
        path.write_bytes(bytes(path.stat().st_size))
    stripes = Stripes(global_batch_size=4, micro_batch_size=4, rank=0, world_size=1)
    with BatchLoader(stream_settings(copy), stripes, workers=workers) as loader:
        for _ in range(2):
            with pytest.raises(DataError, match=r"shard-00000\d.tar: document shard-.* damaged"):
                next(loader)


def test_a_flipped_byte_is_found_and_named(copy: Path) -> None:
    manifest = Manifest.load(copy)
    choose = random.Random(0)
    for _ in range(25):
        info = choose.choice(manifest.shards)
        path = copy / info.file
        sound = path.read_bytes()
        with tarfile.open(path) as tar:
            member = choose.choice([m for m in tar if m.name.endswith(".tokens.npy")])
        place = member.offset_data + choose.randrange(member.size)
        flipped = bytes([sound[place] ^ choose.randrange(1, 256)])
        path.write_bytes(sound[:place] + flipped + sound[place + 1 :])
        stream = open_stream(copy)
        key = member.name.removesuffix(".tokens.npy")
        with pytest.raises(DataError, match=rf"{info.file}: document {key} is damaged .*verify"):
            read_everything(stream)
        stream.close()
        path.write_bytes(sound)
    sound_stream = open_stream(copy)
    read_everything(sound_stream)


def test_damage_after_opening_is_found_too(copy: Path) -> None:
    stream = open_stream(copy)
    read_everything(stream)
    info = stream.manifests["a"].shards[0]
    os.truncate(copy / info.file, info.size_bytes // 2)
    with pytest.raises(DataError, match=rf"{info.file}.*damaged"):
        read_everything(stream)


def test_what_is_missing_or_cut_off_is_found_when_opening(copy: Path) -> None:
    info = Manifest.load(copy).shards[1]
    path = copy / info.file
    sound = path.read_bytes()

    path.write_bytes(sound[:-512])
    with pytest.raises(DataError, match=rf"{info.file} is damaged: it has \d+ bytes, the manifest"):
        open_stream(copy).check_files()
    path.unlink()
    with pytest.raises(DataError, match=rf"{info.file} is missing, though the manifest lists it"):
        open_stream(copy).check_files()
    path.write_bytes(sound)

    (copy / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"manifest.json is missing: .*spade data build"):
        open_stream(copy)


def test_a_lost_index_is_made_anew(copy: Path, train: Path) -> None:
    for path in copy.glob("*.idx"):
        path.unlink()
    assert np.array_equal(read_everything(open_stream(copy)), read_everything(open_stream(train)))
    assert not list(copy.glob("*.idx"))


def test_damage_shows_when_a_lost_index_is_made_anew(copy: Path) -> None:
    info = Manifest.load(copy).shards[0]
    (copy / info.index_file).unlink()
    data = bytearray((copy / info.file).read_bytes())
    data[800] ^= 1
    (copy / info.file).write_bytes(data)
    stream = open_stream(copy)
    with pytest.raises(DataError, match=rf"is missing or damaged, and so is {info.file}"):
        read_everything(stream)


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads((folder / "manifest.json").read_text())
    change(value)
    (folder / "manifest.json").write_text(json.dumps(value))


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.pop("tokens"),
        lambda value: value.update(extra=1),
        lambda value: value.update(tokens=value["tokens"] + 1),
        lambda value: value.update(documents=0),
        lambda value: value.update(documents="3"),
        lambda value: value.update(dtype="|O"),
        lambda value: value.update(dtype=">u2"),
        lambda value: value.update(vocab_size=2**17),
        lambda value: value.update(eos_token_id=-1),
        lambda value: value.update(shards={}),
        lambda value: value.update(shards=[1]),
        lambda value: value["shards"][0].update(file="../../etc/passwd"),
        lambda value: value["shards"][0].update(file="pipe:touch evil"),
        lambda value: value["shards"][0].update(file="shard-000000.tar\n"),
        lambda value: value["shards"][0].update(checksum="x"),
        lambda value: value["shards"][0].update(size_bytes=-1),
        lambda value: value["shards"].append(value["shards"][0]),
        lambda value: value.update(format_version=2),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    copy: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    change_manifest(copy, change)
    with pytest.raises(DataError, match=r"manifest\.json .*spade data build"):
        open_stream(copy)


def test_a_manifest_that_contradicts_the_index_is_refused(copy: Path) -> None:
    def change(value: dict[str, Any]) -> None:
        value["shards"][0]["tokens"] += 1
        value["tokens"] += 1

    change_manifest(copy, change)
    stream = open_stream(copy)
    with pytest.raises(DataError, match="and the manifest contradict each other"):
        read_everything(stream)


def test_another_tokenizer_is_refused(copy: Path, prose_data: Path) -> None:
    change_manifest(copy, lambda value: value.update(tokenizer_fingerprint="f" * 64))
    tokenizer = DocumentTokenizer.load(prose_data / "tokenizer")
    with pytest.raises(DataError, match=r"576 ids\) is not the one the shards were made with"):
        Manifest.load(copy).check_tokenizer(tokenizer)


def test_ids_beyond_the_vocabulary_are_never_handed_out(copy: Path) -> None:
    change_manifest(copy, lambda value: value.update(vocab_size=300, piece_count=290))
    stream = open_stream(copy, objective=SpanCorruption(24))
    with pytest.raises(DataError, match=r"hold id \d+, but the vocabulary has 300"):
        read_everything(stream)
