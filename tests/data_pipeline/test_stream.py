"""Streaming: exact windows, every sample a function of its number, and never a wrong token."""

from __future__ import annotations

import hashlib
import io
import itertools
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import OBJECTIVE, open_stream, random_documents, write_dataset

from data_pipeline.errors import DataError
from data_pipeline.objectives.span_corruption import SpanCorruption
from data_pipeline.reading import dataset_reader
from data_pipeline.reading.dataset_reader import DatasetReader
from data_pipeline.reading.mixture import Stage
from data_pipeline.reading.stream import PretrainingStream
from data_pipeline.remote.dataset_folder import LocalFolder
from data_pipeline.shards.manifest import Manifest
from data_pipeline.tokenization.tokenizer import DocumentTokenizer


@pytest.fixture(scope="module")
def train(prose_data: Path) -> Path:
    return prose_data / "train"


@pytest.fixture(scope="module")
def stream(train: Path) -> PretrainingStream:
    return open_stream(train)


@pytest.fixture(scope="module")
def three_sets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    rng = np.random.default_rng(1)
    folders = [tmp_path_factory.mktemp("three") / name for name in "abc"]
    for folder, shards in zip(folders, (3, 1, 2), strict=True):
        write_dataset(folder, [random_documents(rng, 40) for _ in range(shards)])
    return folders


def shard_lines(folder: Path) -> list[np.ndarray]:
    """Each shard's documents end to end, read by tarfile and numpy."""
    lines = []
    for path in sorted(folder.glob("shard-*.tar")):
        with tarfile.open(path) as tar:
            contents = [
                tar.extractfile(member).read()  # type: ignore[union-attr]
                for member in tar
                if member.name.endswith(".tokens.npy")
            ]
        lines.append(np.concatenate([np.load(io.BytesIO(content)) for content in contents]))
    return lines


def test_an_epoch_is_the_shards_but_for_their_ends(train: Path, stream: PretrainingStream) -> None:
    lines = shard_lines(train)
    assert len(lines) > 2
    length = OBJECTIVE.window_tokens
    samples = stream.locate(np.arange(stream.samples_per_epoch["a"]))
    windows = stream.read(samples).tokens
    places = zip(samples.shards.tolist(), samples.starts.tolist(), windows.tolist(), strict=True)
    whole = np.concatenate([line[: len(line) // length * length] for line in lines])
    assert np.array_equal(np.concatenate([np.array(w) for _, _, w in sorted(places)]), whole)


def test_documents_end_with_the_end_of_sequence(prose_data: Path, train: Path) -> None:
    manifest = Manifest.load(train)
    tokenizer = DocumentTokenizer.load(prose_data / "tokenizer")
    manifest.check_tokenizer(tokenizer)
    lines = shard_lines(train)
    assert sum(int((line == 1).sum()) for line in lines) == manifest.documents
    assert all(line[-1] == 1 for line in lines)
    assert sum(map(len, lines)) == manifest.tokens


def test_batches_are_what_the_objective_makes_of_windows(stream: PretrainingStream) -> None:
    samples = stream.locate([9, 0, 10**9, 9])
    batch = stream.batch([9, 0, 10**9, 9])
    expected = OBJECTIVE.make(stream.read(samples), samples.keys, stream.vocabulary)
    assert np.array_equal(batch.input_ids, expected.input_ids)
    assert np.array_equal(batch.labels, expected.labels)
    assert batch.input_ids.dtype == np.dtype("<u2")
    assert np.array_equal(batch.input_ids[0], batch.input_ids[3])
    # Another time that a window is seen its spans are others.
    again = stream.locate(np.arange(2) * stream.samples_per_epoch["a"])
    assert again.keys[0] != again.keys[1]


@settings(deadline=None, max_examples=40)
@given(
    samples=st.lists(st.integers(0, 10**9), min_size=1, max_size=12),
    windows=st.sampled_from(["concat", "document"]),
)
def test_a_sample_is_a_function_of_its_number(
    three_sets: list[Path], samples: list[int], windows: str
) -> None:
    stream = open_stream(*three_sets, windows=windows, bucket_samples=4, document_boundaries=True)
    together = stream.batch(samples)
    for row, sample in enumerate(samples):
        alone = stream.batch([sample])
        length = alone.input_ids.shape[1]
        assert np.array_equal(alone.input_ids[0], together.input_ids[row, :length])
        assert (together.input_ids[row, length:] == 0).all()
        assert alone.input_segment_ids is not None
        assert together.input_segment_ids is not None
        assert np.array_equal(alone.input_segment_ids[0], together.input_segment_ids[row, :length])
        length = alone.labels.shape[1]
        assert np.array_equal(alone.labels[0], together.labels[row, :length])


def test_sources_keep_their_samples_when_others_come(three_sets: list[Path]) -> None:
    """A source added later changes nothing before, and the others go on where they were."""
    first, second, third = three_sets
    before = open_stream(first, second, stages=(Stage(0, {"a": 3, "b": 1}),))
    after = open_stream(
        first,
        second,
        third,
        stages=(Stage(0, {"a": 3, "b": 1}), Stage(100, {"a": 1, "c": 1})),
    )
    old, new = before.batch(np.arange(100)), after.batch(np.arange(100))
    assert np.array_equal(old.input_ids, new.input_ids)
    assert np.array_equal(old.labels, new.labels)
    later = after.locate(np.arange(100, 140))
    assert set(later.sources.tolist()) == {0, 2}
    assert later.numbers[later.sources == 0].tolist() == list(range(75, 95))
    assert after.epochs(100)["c"] == 0
    assert after.epochs(140)["c"] == 20 / after.samples_per_epoch["c"]


def test_sources_mix_by_size_unless_told(three_sets: list[Path]) -> None:
    stream = open_stream(*three_sets)
    tokens = [manifest.tokens for manifest in stream.manifests.values()]
    sources = stream.locate(np.arange(3000)).sources
    shares = np.bincount(sources, minlength=3) / 3000
    assert shares == pytest.approx(np.array(tokens) / sum(tokens), abs=2e-3)


def test_data_sets_of_different_tokenizers_do_not_mix(three_sets: list[Path], train: Path) -> None:
    with pytest.raises(DataError, match="sources 'a' and 'b' were made with different tokenizers"):
        open_stream(three_sets[0], train)
    with pytest.raises(DataError, match="no data set given"):
        open_stream()


def test_too_few_sentinels_are_found_when_opening(train: Path) -> None:
    with pytest.raises(DataError, match=r"64 sentinels.* need 227"):
        open_stream(train, objective=SpanCorruption(4096))
    with pytest.raises(DataError, match=r"seed must be"):
        open_stream(train, seed=-1)


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(
        st.one_of(st.integers(1, 40), st.integers(900, 5000)), min_size=1, max_size=20
    ),
    cuts=st.lists(st.integers(1, 19), max_size=3),
    window_tokens=st.integers(1, 3000),
    vocab_size=st.sampled_from([60_000, 10**6]),
    memory_map=st.booleans(),
)
def test_windows_are_exact_whatever_the_documents(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    cuts: list[int],
    window_tokens: int,
    vocab_size: int,
    memory_map: bool,
) -> None:
    folder = tmp_path_factory.mktemp("set")
    documents = [np.arange(start, start + n) % 59_000 for start, n in enumerate(lengths)]
    bounds = sorted({0, len(documents), *(cut for cut in cuts if cut < len(documents))})
    parts = [documents[a:b] for a, b in itertools.pairwise(bounds)]
    manifest = write_dataset(folder, parts, vocab_size)
    assert Manifest.load(folder) == manifest
    assert Manifest.load(LocalFolder(folder)).fingerprint == manifest.fingerprint
    reader = DatasetReader(LocalFolder(folder), manifest, memory_map=memory_map)
    choose = random.Random(0)
    lines = [np.concatenate(part).astype(manifest.token_dtype) for part in parts]
    for _ in range(30):
        shard = choose.randrange(len(lines))
        if len(lines[shard]) < window_tokens:
            continue
        start = choose.randrange(len(lines[shard]) - window_tokens + 1)
        window = np.empty(window_tokens, dtype=manifest.token_dtype)
        segments = np.empty(window_tokens, dtype=np.uint16)
        reader.read(window.view(np.uint8).data, shard, start, segments)
        assert np.array_equal(window, lines[shard][start : start + window_tokens])
        owner = np.repeat(np.arange(len(parts[shard])), [len(part) for part in parts[shard]])
        assert np.array_equal(segments, owner[start : start + window_tokens] - owner[start] + 1)
    reader.close()


def test_few_files_are_open_at_a_time(train: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_reader, "_MAXIMUM_OPEN_SHARDS", 2)
    folder = LocalFolder(train)
    reader = DatasetReader(folder, Manifest.load(folder))
    expected, got = hashlib.sha256(), hashlib.sha256()
    lines = shard_lines(train)
    for sample in range(100):
        shard = sample % len(lines)
        window = np.empty(50, dtype="<u2")
        reader.read(window.view(np.uint8).data, shard, sample)
        got.update(window.tobytes())
        expected.update(lines[shard][sample : sample + 50].tobytes())
        assert len(reader._open) <= 2
    assert got.digest() == expected.digest()


def test_the_room_needs_no_torch() -> None:
    code = (
        "import sys, data_pipeline; data_pipeline.PretrainingStream, data_pipeline.Manifest\n"
        "import data_pipeline.building.build, data_pipeline.inspection.verify\n"
        "import data_pipeline.inspection.inspect\n"
        "import data_pipeline.reading.unigram, data_pipeline.reading.batch_loader\n"
        "assert not {'torch', 'webdataset', 'mpi4py.MPI', 'fsspec'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
