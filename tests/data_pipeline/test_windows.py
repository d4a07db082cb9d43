"""How documents become windows: nothing lost, nothing twice, little padding."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import open_stream, random_documents, write_dataset

from data_pipeline.errors import DataError
from data_pipeline.objectives import make_objective
from data_pipeline.reading.windows import (
    SHORTEST_DOCUMENT_TOKENS,
    DocumentWindows,
    bucket_edges,
    document_parts,
    make_windows,
)
from data_pipeline.remote.dataset_folder import LocalFolder
from data_pipeline.shards.manifest import Manifest


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=40),
    window_tokens=st.integers(SHORTEST_DOCUMENT_TOKENS, 700),
)
def test_parts_tile_their_documents(lengths: list[int], window_tokens: int) -> None:
    starts, parts = document_parts(lengths, window_tokens)
    covered = np.zeros(sum(lengths), dtype=int)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    for start, length in zip(starts.tolist(), parts.tolist(), strict=True):
        covered[start : start + length] += 1
        assert len(set(owner[start : start + length].tolist())) == 1
        assert 1 <= length <= window_tokens
    assert covered.max(initial=0) <= 1
    for document, length in enumerate(lengths):
        mine = parts[owner[starts] == document]
        if length < SHORTEST_DOCUMENT_TOKENS:
            assert len(mine) == 0
        else:
            assert mine.sum() == length
            assert len(mine) == -(-length // window_tokens)
            assert mine.max() - mine.min() <= 1


@given(window_tokens=st.integers(SHORTEST_DOCUMENT_TOKENS, 20_000))
def test_buckets_rise_to_the_window(window_tokens: int) -> None:
    edges = bucket_edges(window_tokens)
    assert edges[-1] == window_tokens
    assert (np.diff(edges) > 0).all()
    assert len(edges) < 130
    assert (edges[1:] / edges[:-1] <= 1.09).all() or edges[0] < 16 or window_tokens < 32


@pytest.fixture(scope="module")
def documents() -> list[list[np.ndarray]]:
    rng = np.random.default_rng(0)
    return [random_documents(rng, 300) for _ in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, documents: list[list[np.ndarray]]) -> Path:
    path = tmp_path_factory.mktemp("windows") / "set"
    write_dataset(path, documents)
    return path


@pytest.mark.parametrize("window_tokens", [64, 500])
def test_an_epoch_of_documents_is_every_part_once(
    folder: Path, documents: list[list[np.ndarray]], window_tokens: int
) -> None:
    objective = make_objective("causal_lm", input_length_tokens=window_tokens)
    stream = open_stream(folder, objective=objective, windows="document", bucket_samples=8)
    size = stream.samples_per_epoch["a"]
    windows = stream.read(stream.locate(np.arange(size)))
    found = sorted(
        tuple(row[:length].tolist())
        for row, length in zip(windows.tokens, windows.lengths.tolist(), strict=True)
    )
    expected = []
    for document in (document for shard in documents for document in shard):
        count = -(-len(document) // window_tokens)
        edges = np.arange(count + 1) * len(document) // count
        if len(document) >= SHORTEST_DOCUMENT_TOKENS:
            expected += [tuple(document[a:b].tolist()) for a, b in itertools.pairwise(edges)]
    assert found == sorted(expected)


@pytest.mark.parametrize("micro_batch_size", [4, 8])
def test_batches_of_documents_need_little_padding(folder: Path, micro_batch_size: int) -> None:
    objective = make_objective("causal_lm", input_length_tokens=512)
    stream = open_stream(folder, objective=objective, windows="document", bucket_samples=16)
    size = stream.samples_per_epoch["a"] // 16 * 16
    padded = real = 0
    for first in range(0, size, micro_batch_size):
        windows = stream.read(stream.locate(np.arange(first, first + micro_batch_size)))
        padded += windows.tokens.size
        real += int(windows.lengths.sum())
    assert 1 - real / padded < 0.05


def test_windows_laid_end_to_end_are_full_and_know_their_documents(
    folder: Path, documents: list[list[np.ndarray]]
) -> None:
    objective = make_objective("causal_lm", input_length_tokens=128)
    stream = open_stream(folder, objective=objective, document_boundaries=True)
    samples = stream.locate(np.arange(stream.samples_per_epoch["a"]))
    windows = stream.read(samples)
    assert windows.segment_ids is not None
    lines = [np.concatenate(shard) for shard in documents]
    owners = [np.repeat(np.arange(len(shard)), [len(d) for d in shard]) for shard in documents]
    rows = zip(samples.shards.tolist(), samples.starts.tolist(), strict=True)
    for row, (shard, start) in enumerate(rows):
        assert np.array_equal(windows.tokens[row], lines[shard][start : start + 128])
        owner = owners[shard][start : start + 128]
        assert np.array_equal(windows.segment_ids[row], owner - owner[0] + 1)
    assert (windows.lengths == 128).all()


def test_counts_of_documents_are_kept(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "set"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / ".windows", ignore_errors=True)
    manifest = Manifest.load(copy)
    counted = DocumentWindows(LocalFolder(copy), manifest, 200).counts
    kept = list((copy / ".windows").iterdir())
    assert len(kept) == 1
    for path in copy.glob("*.idx"):
        path.unlink()
    for path in copy.glob("*.tar"):
        path.unlink()
    # Neither index nor shard is looked at again.
    assert np.array_equal(DocumentWindows(LocalFolder(copy), manifest, 200).counts, counted)
    kept[0].write_bytes(b"\x93NUMPY damaged")
    with pytest.raises(DataError):
        DocumentWindows(LocalFolder(copy), manifest, 200)


def test_impossible_windows_are_errors(folder: Path) -> None:
    place, manifest = LocalFolder(folder), Manifest.load(folder)
    with pytest.raises(DataError, match="window_tokens must be at least 8, not 7"):
        make_windows("concat", place, manifest, 7)
    with pytest.raises(DataError, match="'concat' or 'document', not 'packed'"):
        make_windows("packed", place, manifest, 64)  # type: ignore[arg-type]
    largest = max(shard.tokens for shard in manifest.shards)
    with pytest.raises(DataError, match=f"the largest shard has {largest} tokens"):
        make_windows("concat", place, manifest, largest + 1)
