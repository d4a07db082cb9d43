"""Verifying and inspecting: all damage is named, and nothing in a shard is ever run."""

from __future__ import annotations

import io
import json
import math
import pickle
import random
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from streams import open_stream

from data_pipeline.errors import DataError
from data_pipeline.inspection.inspect import describe_dataset, iterate_shard_tokens
from data_pipeline.inspection.verify import verify_dataset
from data_pipeline.objectives.batch import SpecialTokens
from data_pipeline.progress import Progress
from data_pipeline.reading.unigram import UnigramBaseline, target_unigram
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.shard_index import build_index, index_checksum
from data_pipeline.shards.shard_writer import write_shard


@pytest.fixture
def copy(prose_data: Path, tmp_path: Path) -> Path:
    shutil.copytree(prose_data / "train", tmp_path / "train")
    return tmp_path / "train"


def test_a_sound_data_set_is_sound(prose_data: Path) -> None:
    told: list[Progress] = []
    for part in ("train", "heldout"):
        report = verify_dataset(prose_data / part, told.append)
        manifest = Manifest.load(prose_data / part)
        assert report.is_sound
        assert (report.shards, report.documents) == (len(manifest.shards), manifest.documents)
        assert told[-1].done == told[-1].total == sum(info.size_bytes for info in manifest.shards)


def test_every_flipped_byte_is_found(copy: Path) -> None:
    choose = random.Random(1)
    for _ in range(40):
        path = choose.choice(sorted(copy.glob("shard-*")))
        sound = path.read_bytes()
        place = choose.randrange(len(sound))
        flipped = bytes([sound[place] ^ choose.randrange(1, 256)])
        path.write_bytes(sound[:place] + flipped + sound[place + 1 :])
        report = verify_dataset(copy)
        assert not report.is_sound
        assert {damage.shard for damage in report.damages} == {f"{path.stem}.tar"}
        path.write_bytes(sound)
    assert verify_dataset(copy).is_sound


def test_damaged_documents_are_named_through_other_damage(copy: Path) -> None:
    info = Manifest.load(copy).shards[0]
    path = copy / info.file
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        members = [member for member in tar if member.name.endswith(".tokens.npy")]
    # A header breaks the layout first; two documents behind it are damaged as well.
    data[members[1].offset + 5] ^= 1
    for number in (3, 5):
        data[members[number].offset_data + 200] ^= 1
    path.write_bytes(data)
    report = verify_dataset(copy)
    named = {damage.document for damage in report.damages if damage.document}
    assert named == {members[number].name.split(".")[0] for number in (3, 5)}
    assert any("header of" in damage.reason for damage in report.damages)
    assert all(str(damage).startswith(info.file) for damage in report.damages)


def test_missing_and_cut_off_shards_are_found(copy: Path) -> None:
    first, second, *_ = Manifest.load(copy).shards
    (copy / first.file).unlink()
    data = (copy / second.file).read_bytes()
    (copy / second.file).write_bytes(data[: len(data) // 2])
    (copy / second.index_file).unlink()
    reasons = {(damage.shard, damage.reason) for damage in verify_dataset(copy).damages}
    assert (first.file, "the shard is missing") in reasons
    assert any(shard == second.file and "cut off" in reason for shard, reason in reasons)
    assert any(shard == second.file and "index" in reason for shard, reason in reasons)
    with pytest.raises(DataError, match=r"manifest.json is missing"):
        verify_dataset(copy / "nowhere")


def test_many_damaged_documents_are_counted(copy: Path) -> None:
    info = max(Manifest.load(copy).shards, key=lambda shard: shard.documents)
    assert info.documents > 21
    (copy / info.file).write_bytes(bytes(info.size_bytes))
    damages = [damage for damage in verify_dataset(copy).damages if damage.shard == info.file]
    assert sum(damage.document is not None for damage in damages) == 20
    assert any(f"{info.documents - 20} more documents" in damage.reason for damage in damages)


def replace_shard(folder: Path, tar: bytes) -> str:
    """Puts forged bytes in place of the first shard, with a manifest that fits their size."""
    info = Manifest.load(folder).shards[0]
    (folder / info.file).write_bytes(tar)
    value = json.loads((folder / "manifest.json").read_text())
    value["shards"][0]["size_bytes"] = len(tar)
    (folder / "manifest.json").write_text(json.dumps(value))
    return info.stem


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.marker,))


def test_forged_shards_run_nothing_and_are_refused(copy: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    bomb = pickle.dumps(Bomb(marker))
    array = io.BytesIO()
    np.save(array, np.array([Bomb(marker)], dtype=object), allow_pickle=True)
    stem = Manifest.load(copy).shards[0].stem
    key = f"{stem}-000000"
    forgeries = [
        {f"{key}.tokens.npy": array.getvalue(), f"{key}.json": b'{"name": "x"}'},
        *(
            {f"{key}.{suffix}": bomb, f"{key}.json": b'{"name": "x"}'}
            for suffix in ("pyd", "pth", "pickle", "pkl", "tokens.pyd", "npz", "tokens.npz")
        ),
        {"../../../evil.tokens.npy": b"x", "../../../evil.json": b"{}"},
        {"/tmp/evil.tokens.npy": b"x", "/tmp/evil.json": b"{}"},
        {"pipe:touch marker.tokens.npy": b"x"},
        {f"{key}.tokens.npy": b"", f"{key}.json": b"[" * 100_000},
    ]
    for members in forgeries:
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            link = tarfile.TarInfo(f"{key}.link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
        replace_shard(copy, tar.getvalue())
        assert not verify_dataset(copy).is_sound
        with pytest.raises(DataError):
            list(iterate_shard_tokens(copy))
        stream = open_stream(copy)
        with pytest.raises(DataError):
            stream.batch(np.arange(stream.samples_per_epoch["a"]))
    assert not marker.exists()
    assert not Path("marker").exists()


def test_sound_bytes_with_impossible_content_are_reported(tmp_path: Path, copy: Path) -> None:
    """The checksums agree with ids no tokenizer of this data set gives."""
    value = json.loads((copy / "manifest.json").read_text())
    documents = [np.array(ids, "<u2") for ids in ([5, 6, 1], [5, 600, 1], [5, 6])]
    info = write_shard(copy, 0, ((str(n), ids) for n, ids in enumerate(documents)), np.dtype("<u2"))
    value.update(shards=[vars(info)], documents=3, tokens=8)
    (copy / "manifest.json").write_text(json.dumps(value))
    reasons = {damage.document: damage.reason for damage in verify_dataset(copy).damages}
    assert reasons == {
        "shard-000000-000001": "it holds id 600, the vocabulary has 576",
        "shard-000000-000002": "it does not end with id 1",
    }


def test_reading_through_webdataset_gives_the_same_documents(prose_data: Path) -> None:
    folder = prose_data / "train"
    manifest = Manifest.load(folder)
    expected = []
    for info in manifest.shards:
        index = build_index(
            folder / info.file,
            manifest.token_dtype,
            lambda document, tokens: expected.append(
                (document.key, json.loads(document.metadata)["name"], tokens.tolist())
            ),
        )
        assert index_checksum(index.to_bytes()) == info.index_checksum
    documents = list(iterate_shard_tokens(folder))
    assert [(d.key, d.name, d.tokens.tolist()) for d in documents] == expected
    assert documents[0].name == "document-00000"


def test_damage_that_webdataset_passes_over_is_an_error(copy: Path) -> None:
    info = Manifest.load(copy).shards[0]
    data = bytearray((copy / info.file).read_bytes())
    with tarfile.open(copy / info.file) as tar:
        member = tar.getmembers()[6]
    data[member.offset + 148] ^= 1
    (copy / info.file).write_bytes(data)
    with pytest.raises(DataError, match=rf"{info.file} is damaged: 3 documents .* can be read"):
        list(iterate_shard_tokens(copy))


def test_a_description_is_json_and_true(prose_data: Path) -> None:
    description = describe_dataset(prose_data / "train")
    assert json.loads(json.dumps(description)) == description
    manifest = Manifest.load(prose_data / "train")
    lengths = sorted(len(d.tokens) for d in iterate_shard_tokens(prose_data / "train"))
    assert description["tokens"] == manifest.tokens == sum(lengths)
    assert description["fingerprint"] == manifest.fingerprint
    percentiles = description["document_tokens_percentiles"]
    assert (percentiles["0"], percentiles["100"]) == (lengths[0], lengths[-1])
    assert percentiles["50"] in lengths
    assert description["first_documents"][0]["name"] == "document-00000"
    assert description["source"]["part"] == "train"


def test_the_unigram_baseline_counts_targets(prose_data: Path) -> None:
    stream = open_stream(prose_data / "train")
    baseline = target_unigram(stream, 100)
    labels = stream.batch(np.arange(100)).masked_labels()
    assert baseline.counts.sum() == labels.size
    ids, counts = np.unique(labels, return_counts=True)
    assert np.array_equal(baseline.counts[ids], counts)
    smoothed = baseline.counts + 1
    assert np.allclose(baseline.nats, -np.log(smoothed / smoothed.sum()), rtol=1e-12)
    is_text = stream.vocabulary.is_text(labels)
    assert 0 < is_text.sum() < labels.size
    # Text costs less where nothing is kept for sentinels and ends, and more than those.
    assert (baseline.text_nats[labels[is_text]] < baseline.nats[labels[is_text]]).all()
    assert baseline.nats[labels].mean() < baseline.text_nats[labels[is_text]].mean()


def test_the_unigram_losses_by_hand() -> None:
    vocab = SpecialTokens(vocab_size=8, sentinel_count=2, eos_token_id=1, pad_token_id=0)
    baseline = UnigramBaseline(np.array([0, 5, 0, 3, 1, 0, 2, 4]), vocab)
    assert baseline.nats[[3, 7, 1, 5]].tolist() == pytest.approx(
        [math.log(23 / 4), math.log(23 / 5), math.log(23 / 6), math.log(23)]
    )
    # Text are ids 2, 3, 4, 5 with counts 0, 3, 1, 0 and one added to each.
    assert np.exp(-baseline.text_nats).tolist() == pytest.approx(
        [0, 0, 1 / 8, 4 / 8, 2 / 8, 1 / 8, 0, 0]
    )
    assert np.exp(-baseline.nats).sum() == pytest.approx(1)


def test_a_baseline_needs_samples(prose_data: Path) -> None:
    stream = open_stream(prose_data / "train")
    with pytest.raises(DataError, match="samples must be at least 1"):
        target_unigram(stream, 0)
