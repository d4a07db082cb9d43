"""Parts of samples: together they are the samples, and each reads little more than its own."""

from __future__ import annotations

import dataclasses
import itertools
import os
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_rows import EXAMPLE_NAMES, EXAMPLES
from streams import open_stream, random_documents, stream_settings, write_dataset

from data_pipeline.objectives import Batch, make_objective
from data_pipeline.objectives.batch import SamplePart
from data_pipeline.reading import shard_reader
from data_pipeline.reading.batch_loader import BatchLoader, Stripes
from data_pipeline.reading.stream import PretrainingStream
from data_pipeline.shards.shard_index import CHECKED_BLOCK_BYTES

VOCAB_SIZE = 600
ENDS = np.arange(VOCAB_SIZE) % 11 == 1
LONG_TOKENS = 2**17


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of 2 to 1,000 tokens, so that windows have many of them and end in the middle."""
    rng = np.random.default_rng(4)
    folder = tmp_path_factory.mktemp("parts") / "set"
    documents = [random_documents(rng, 50, median=40) for _ in range(3)]
    write_dataset(folder, documents, VOCAB_SIZE)
    return folder


@pytest.fixture(scope="module")
def long_document(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One document, and a sentinel for every third of its tokens."""
    rng = np.random.default_rng(5)
    folder = tmp_path_factory.mktemp("long") / "set"
    manifest = write_dataset(folder, [[rng.integers(3, 500, 2 * LONG_TOKENS)]], 2**16)
    dataclasses.replace(manifest, piece_count=500).save(folder)
    return folder


def joined(parts: Sequence[Batch], name: str) -> npt.NDArray[Any]:
    return np.concatenate([getattr(part, name) for part in parts], axis=1)


def check_parts(parts: Sequence[Batch], whole: Batch) -> None:
    """That parts are all of some samples, and padding where these have fewer tokens than parts."""
    size = whole.input_ids.shape[1]
    ids = joined(parts, "input_ids")
    assert ids.dtype == whole.input_ids.dtype
    assert np.array_equal(ids[:, :size], whole.input_ids)
    assert ids.shape[1] == max(size, len(parts))
    assert not ids[:, size:].any(), "0 is the padding"
    assert np.array_equal(joined(parts, "labels"), whole.labels)
    if whole.input_segment_ids is not None:
        segments = joined(parts, "input_segment_ids")
        assert np.array_equal(segments[:, :size], whole.input_segment_ids)
        assert not segments[:, size:].any()
    for number, one in enumerate(parts):
        assert one.part is not None
        assert one.part.is_sound
        assert (one.part.input_columns, one.part.label_columns) == (
            ids.shape[1],
            whole.labels.shape[1],
        )
        columns = one.part.part.columns(ids.shape[1])
        assert one.input_ids.shape[1] == columns.stop - columns.start
        assert one.part.part == SamplePart(number, len(parts))
        assert (one.input_segment_ids is None) == (whole.input_segment_ids is None)
        for name in ("input_lengths", "label_lengths"):
            lengths = getattr(whole, name)
            if name == "input_lengths" and size < len(parts) and lengths is None:
                lengths = np.full(len(ids), size)
            own = getattr(one, name)
            assert (own is None) == (lengths is None)
            assert lengths is None or np.array_equal(own, lengths)


@pytest.mark.parametrize("number", range(len(EXAMPLES)), ids=EXAMPLE_NAMES)
@settings(deadline=None, max_examples=12)
@given(
    count=st.integers(2, 5) | st.integers(6, 30),
    samples=st.lists(st.integers(0, 10**6), min_size=1, max_size=5),
    windows=st.sampled_from(["concat", "document"]),
    boundaries=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_parts_are_the_whole(
    folder: Path,
    number: int,
    count: int,
    samples: list[int],
    windows: str,
    boundaries: bool,
    seed: int,
) -> None:
    kind, chosen = EXAMPLES[number]
    common: dict[str, Any] = {
        "objective": make_objective(kind, **chosen),
        "windows": windows,
        "document_boundaries": boundaries,
        "seed": seed,
        "sentence_end": ENDS,
        "bucket_samples": 3,
    }
    whole = open_stream(folder, **common)
    parts = []
    for place in range(count):
        stream = open_stream(folder, **common, part=SamplePart(place, count))
        parts.append(stream.batch(samples))
        if place == 0:
            again = stream.make_whole(samples)
            assert np.array_equal(again.input_ids, whole.batch(samples).input_ids)
        stream.close()
    check_parts(parts, whole.batch(samples))
    whole.close()


@given(columns=st.integers(0, 300), count=st.integers(1, 40))
def test_pieces_are_equal_and_leave_nothing_out(columns: int, count: int) -> None:
    pieces = [SamplePart(number, count).columns(columns) for number in range(count)]
    assert pieces[0].start == 0
    assert pieces[-1].stop == columns
    assert all(one.stop == other.start for one, other in itertools.pairwise(pieces))
    sizes = [piece.stop - piece.start for piece in pieces]
    assert max(sizes) - min(sizes) <= 1
    assert tuple(sizes) == SamplePart(0, count).widths(columns)


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_hand_parts_on(folder: Path, workers: int) -> None:
    stripes = Stripes(global_batch_size=4, micro_batch_size=2, rank=1, world_size=2)
    common = stream_settings(folder, windows="document", document_boundaries=True)
    with BatchLoader(common, stripes) as loader:
        whole = [next(loader) for _ in range(40)]
    loaders = [
        BatchLoader(dataclasses.replace(common, part=SamplePart(n, 3)), stripes, workers=workers)
        for n in range(3)
    ]
    for number, expected in enumerate(whole):
        check_parts([next(loader) for loader in loaders], expected)
        if number % 13 == 0:
            assert np.array_equal(loaders[2].make_whole([]).labels, expected.labels)
    for loader in loaders:
        loader.close()


def counted_reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Bytes that shards were read for since this was last asked."""
    read_bytes = 0
    really = os.preadv

    def preadv(*arguments: Any) -> int:
        nonlocal read_bytes
        count = really(*arguments)
        read_bytes += count
        return count

    def taken() -> int:
        nonlocal read_bytes
        count, read_bytes = read_bytes, 0
        return count

    monkeypatch.setattr(shard_reader.os, "preadv", preadv)
    return taken


OBJECTIVES = {
    "span_corruption": {},
    "span_corruption, few spans": {"mean_span_tokens": 200.0},
    "ul2 R": {"x_weight": 0.0, "s_weight": 0.0},
    "ul2 S": {"r_weight": 0.0, "x_weight": 0.0},
    "ul2 X": {"r_weight": 0.0, "s_weight": 0.0},
    "prefix_lm": {},
}


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_part_reads_its_part_of_the_shard(
    long_document: Path, monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    """Of each window 1/count and some blocks; a few more where few spans are drawn unevenly."""
    kind = name.replace(",", " ").split()[0]
    objective = make_objective(kind, input_length_tokens=LONG_TOKENS // 2, **OBJECTIVES[name])
    samples = [0, 1]
    taken = counted_reads(monkeypatch)
    read: list[int] = []
    for number in range(count):
        stream = open_stream(long_document, objective=objective, part=SamplePart(number, count))
        found = stream.locate(samples)
        window_bytes = 2 * int(found.lengths.sum())
        taken()
        stream.batch(samples)
        read.append(taken())
        stream.close()
    # At each end of a range a block is shared with a neighbour; a row may have two ranges.
    blocks_bytes = len(samples) * 4 * CHECKED_BLOCK_BYTES
    uneven = 0.09 if "few" in name or name == "ul2 X" else 0.01
    assert max(read) <= window_bytes * (1 / count + uneven) + blocks_bytes, read
    assert sum(read) >= window_bytes, "every token is somebody's"


def test_a_part_holds_its_part_in_memory(long_document: Path) -> None:
    """Of input ids and documents; labels go round only later."""
    objective = make_objective("span_corruption", input_length_tokens=LONG_TOKENS)

    def made(part: SamplePart) -> tuple[int, int, int]:
        stream = open_stream(
            long_document, objective=objective, document_boundaries=True, part=part
        )
        stream.batch([0])  # opens the shard and its index
        tracemalloc.start()
        batch = stream.batch([0])
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        stream.close()
        assert batch.input_segment_ids is not None
        return (
            batch.input_ids.nbytes + batch.input_segment_ids.nbytes,
            batch.labels.nbytes,
            peak_bytes,
        )

    whole, part = made(SamplePart()), made(SamplePart(3, 8))
    assert part[0] == pytest.approx(whole[0] / 8, rel=0.01)
    assert part[1] == pytest.approx(whole[1] / 8, rel=0.01)
    # What does not shrink are the spans, some numbers for every twenty tokens.
    assert part[2] < 0.4 * whole[2]


def test_damage_is_told_by_the_part_that_meets_it(
    long_document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And by nobody else, so that somebody must tell the others."""
    monkeypatch.setattr(shard_reader, "_RETRY_SECONDS", (0.0, 0.0))
    harmed = tmp_path / "set"
    harmed.mkdir()
    for path in long_document.iterdir():
        if path.is_file():
            (harmed / path.name).write_bytes(path.read_bytes())
    tar = harmed / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)
    objective = make_objective("span_corruption", input_length_tokens=LONG_TOKENS)

    def opened(number: int) -> PretrainingStream:
        return open_stream(
            harmed,
            objective=objective,
            on_damage="quarantine",
            max_damaged_fraction=0.5,
            part=SamplePart(number, 4),
        )

    streams = [opened(number) for number in range(4)]
    parts = [stream.batch([0]).part for stream in streams]
    told = [part is not None and not part.is_sound for part in parts]
    assert sum(told) in (1, 2), "of two where the damaged token is near a border"
    assert told == [bool(stream.quarantine.entries) for stream in streams]
    # Whoever knows of it tells so without reading, whatever is its part.
    other = streams[told.index(False)]
    other.quarantine.extend(streams[told.index(True)].quarantine.entries)
    part = other.batch([0]).part
    assert part is not None
    assert not part.is_sound
