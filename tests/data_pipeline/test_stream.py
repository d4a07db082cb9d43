"""Streaming: exact windows, the same batches on any number of ranks, and never a wrong token."""

from __future__ import annotations

import hashlib
import io
import itertools
import random
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import shard_reader
from data_pipeline.batch_loader import BatchLoader
from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest
from data_pipeline.objective import SpanCorruption
from data_pipeline.shard_reader import DatasetReader
from data_pipeline.shard_writer import write_shard
from data_pipeline.stream import PretrainingStream
from data_pipeline.tokenizer import DocumentTokenizer

OBJECTIVE = SpanCorruption(64)


@pytest.fixture(scope="module")
def train(prose_data: Path) -> Path:
    return prose_data / "train"


@pytest.fixture(scope="module")
def stream(train: Path) -> PretrainingStream:
    return PretrainingStream(train, OBJECTIVE, seed=5)


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


def test_a_window_is_where_the_order_says(train: Path, stream: PretrainingStream) -> None:
    lines = shard_lines(train)
    assert len(lines) > 2
    samples = np.arange(2 * stream.samples_per_epoch)
    windows = stream.windows(samples)
    _, shards, starts = stream.order.locate(samples)
    for window, shard, start in zip(windows, shards, starts, strict=True):
        expected = lines[shard][start : start + OBJECTIVE.raw_length_tokens]
        assert np.array_equal(window, expected)
    # A whole epoch, put in order, is the shards but for the rest that fills no window.
    placed = sorted(zip(shards[: len(samples) // 2], starts, windows.tolist(), strict=False))
    length = OBJECTIVE.raw_length_tokens
    whole = np.concatenate([line[: len(line) // length * length] for line in lines])
    assert np.array_equal(np.concatenate([np.array(w) for _, _, w in placed]), whole)


def test_documents_end_with_the_end_of_sequence(prose_data: Path, train: Path) -> None:
    manifest = Manifest.load(train)
    tokenizer = DocumentTokenizer.load(prose_data / "tokenizer")
    manifest.check_tokenizer(tokenizer)
    lines = shard_lines(train)
    assert sum(int((line == 1).sum()) for line in lines) == manifest.documents
    assert all(line[-1] == 1 for line in lines)
    assert sum(map(len, lines)) == manifest.tokens


def test_batches_are_the_corrupted_windows(stream: PretrainingStream) -> None:
    samples = np.array([9, 0, 10**9, 9])
    batch = stream.batch(samples)
    inputs, labels = OBJECTIVE.corrupt(
        stream.windows(samples), samples, seed=5, vocab=stream._vocab
    )
    assert np.array_equal(batch.input_ids, inputs)
    assert np.array_equal(batch.labels, labels)
    assert batch.input_ids.dtype == batch.labels.dtype == np.int64
    assert np.array_equal(batch.input_ids[0], batch.input_ids[3])


@settings(deadline=None, max_examples=30)
@given(
    ranks_and_micro_batches=st.sampled_from([(1, 1), (1, 8), (2, 1), (2, 4), (4, 2), (8, 1)]),
    start_step=st.integers(0, 10**6),
)
def test_any_number_of_ranks_sees_the_same_global_batches(
    stream: PretrainingStream, ranks_and_micro_batches: tuple[int, int], start_step: int
) -> None:
    ranks, micro_batch_size = ranks_and_micro_batches
    loaders = [
        BatchLoader(
            stream,
            global_batch_size=8,
            micro_batch_size=micro_batch_size,
            rank=rank,
            world_size=ranks,
            start_step=start_step,
        )
        for rank in range(ranks)
    ]
    try:
        for step in range(start_step, start_step + 2):
            rows = [
                next(loader) for _ in range(loaders[0].micro_batches_per_step) for loader in loaders
            ]
            whole = stream.batch(np.arange(8 * step, 8 * step + 8))
            assert np.array_equal(np.concatenate([row.input_ids for row in rows]), whole.input_ids)
            assert np.array_equal(np.concatenate([row.labels for row in rows]), whole.labels)
    finally:
        for loader in loaders:
            loader.close()


def test_starting_at_a_step_is_going_on(stream: PretrainingStream) -> None:
    options = {"global_batch_size": 4, "micro_batch_size": 2, "rank": 0, "world_size": 1}
    with BatchLoader(stream, **options) as loader:
        whole = [next(loader) for _ in range(12)]
        assert loader.wait_seconds >= 0
    for step in (1, 3, 5):
        with BatchLoader(stream, **options, start_step=step, prefetch=1) as loader:
            for expected in whole[2 * step :]:
                assert np.array_equal(next(loader).input_ids, expected.input_ids)


def test_a_closed_loader_stops_and_leaves_no_thread(stream: PretrainingStream) -> None:
    before = threading.active_count()
    loader = BatchLoader(
        stream, global_batch_size=2, micro_batch_size=1, rank=1, world_size=2, prefetch=3
    )
    assert next(iter(loader)).input_ids.shape == (1, 64)
    loader.close()
    loader.close()
    assert list(loader) == []
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch_size": 9}, "global_batch_size 9 is not divisible by micro_batch_size 2"),
        ({"micro_batch_size": 0}, "micro_batch_size must be at least 1"),
        ({"rank": 2}, "rank must be from 0 to 1"),
        ({"start_step": -1}, "start_step must be at least 0"),
        ({"prefetch": 0}, "prefetch must be at least 1"),
    ],
)
def test_impossible_loaders_are_errors(
    stream: PretrainingStream, changes: dict[str, int], message: str
) -> None:
    options = {"global_batch_size": 8, "micro_batch_size": 2, "rank": 0, "world_size": 2}
    with pytest.raises(DataError, match=message):
        BatchLoader(stream, **{**options, **changes})


def test_too_few_sentinels_are_found_when_opening(train: Path) -> None:
    with pytest.raises(DataError, match=r"has 64 sentinels, but inputs of 4096 .* need 227"):
        PretrainingStream(train, SpanCorruption(4096), seed=0)
    with pytest.raises(DataError, match=r"seed must be"):
        PretrainingStream(train, OBJECTIVE, seed=-1)


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    cuts=st.lists(st.integers(1, 29), max_size=3),
    window_tokens=st.integers(1, 70),
    cache_bytes=st.sampled_from([0, 50, 10**6]),
)
def test_windows_are_exact_whatever_the_documents(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    cuts: list[int],
    window_tokens: int,
    cache_bytes: int,
) -> None:
    folder = tmp_path_factory.mktemp("set")
    documents = [np.arange(start, start + n, dtype="<u4") for start, n in enumerate(lengths)]
    bounds = sorted({0, len(documents), *(cut for cut in cuts if cut < len(documents))})
    parts = [documents[a:b] for a, b in itertools.pairwise(bounds)]
    dtype = np.dtype("<u4")
    infos = tuple(
        write_shard(folder, number, ((str(number), tokens) for tokens in part), dtype)
        for number, part in enumerate(parts)
    )
    manifest = Manifest(
        format_version=1,
        dtype="<u4",
        vocab_size=10**6,
        piece_count=10**6,
        pad_token_id=0,
        eos_token_id=1,
        tokenizer_fingerprint="",
        documents=len(documents),
        tokens=sum(lengths),
        shards=infos,
        source={},
    )
    manifest.save(folder)
    assert Manifest.load(folder) == manifest
    assert Manifest.load(folder).fingerprint == manifest.fingerprint
    reader = DatasetReader(folder, manifest, cache_bytes=cache_bytes)
    places = [
        (number, start)
        for number, info in enumerate(infos)
        for start in range(info.tokens - window_tokens + 1)
    ]
    random.Random(0).shuffle(places)
    windows = reader.read_windows(
        [shard for shard, _ in places], [start for _, start in places], window_tokens
    )
    lines = [np.concatenate(part) for part in parts]
    for (shard, start), window in zip(places, windows, strict=True):
        assert np.array_equal(window, lines[shard][start : start + window_tokens])
    assert len(reader._documents) <= 1 or reader._documents_bytes <= cache_bytes
    reader.close()


def test_few_files_are_open_at_a_time(train: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_reader, "_MAXIMUM_OPEN_SHARDS", 2)
    stream = PretrainingStream(train, OBJECTIVE, seed=5)
    expected = hashlib.sha256()
    got = hashlib.sha256()
    reference = PretrainingStream(train, OBJECTIVE, seed=5)
    for sample in range(100):
        expected.update(reference.windows([sample]).tobytes())
        got.update(stream.windows([sample]).tobytes())
    assert got.digest() == expected.digest()
    assert len(stream._reader._open) <= 2


def test_several_threads_may_share_a_stream(train: Path) -> None:
    stream = PretrainingStream(train, OBJECTIVE, seed=5)
    expected = stream.windows(np.arange(200))
    results: list[bool] = []

    def read(first: int) -> None:
        for sample in range(first, 200, 4):
            results.append(np.array_equal(stream.windows([sample])[0], expected[sample]))

    threads = [threading.Thread(target=read, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 200
    assert all(results)


def test_the_room_needs_no_torch() -> None:
    code = (
        "import sys, data_pipeline; data_pipeline.PretrainingStream, data_pipeline.Manifest\n"
        "import data_pipeline.build, data_pipeline.verify, data_pipeline.inspect\n"
        "import data_pipeline.unigram\n"
        "assert not {'torch', 'webdataset', 'mpi4py.MPI'} & set(sys.modules)\n"
        "try: data_pipeline.nothing\n"
        "except AttributeError: print('fine')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "fine\n"
