"""Loading: the same batches on any number of ranks and workers, from any sample on."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import open_stream, random_documents, stream_settings, write_dataset

from data_pipeline.errors import DataError
from data_pipeline.objectives import make_objective
from data_pipeline.reading.batch_loader import BatchLoader, Stripes
from data_pipeline.reading.batch_memory import fill, laid_out, unpacked
from data_pipeline.reading.source import StreamSettings


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> StreamSettings:
    """Two sources, documents in windows of their own, batches of many lengths."""
    rng = np.random.default_rng(2)
    folders = [tmp_path_factory.mktemp("mixed") / name for name in "ab"]
    for folder in folders:
        write_dataset(folder, [random_documents(rng, 60) for _ in range(3)])
    objective = make_objective("ul2", input_length_tokens=96)
    return stream_settings(
        *folders,
        objective=objective,
        windows="document",
        bucket_samples=4,
        document_boundaries=True,
        temperature=2.0,
    )


def same(one: object, other: object) -> bool:
    """Whether two batches are equal in every array."""
    values = [vars(batch) for batch in (one, other)]
    return all(
        (left is None) == (right is None) and (left is None or np.array_equal(left, right))
        for left, right in ((values[0][name], values[1][name]) for name in values[0])
    )


@settings(deadline=None, max_examples=25)
@given(
    ranks_and_micro_batches=st.sampled_from([(1, 1), (1, 8), (2, 1), (2, 4), (4, 2), (8, 1)]),
    start_sample=st.integers(0, 10**7),
)
def test_any_number_of_ranks_sees_the_same_global_batches(
    mixed: StreamSettings, ranks_and_micro_batches: tuple[int, int], start_sample: int
) -> None:
    ranks, micro_batch_size = ranks_and_micro_batches
    options = {"global_batch_size": 8, "micro_batch_size": micro_batch_size, "world_size": ranks}
    loaders = [
        BatchLoader(mixed, Stripes(rank=rank, start_sample=start_sample, **options))
        for rank in range(ranks)
    ]
    stream = open_stream(*mixed.sources.values(), **_rest(mixed))
    try:
        for first in (start_sample, start_sample + 8):
            for micro_batch in range(loaders[0].stripes.micro_batches_per_step):
                for rank, loader in enumerate(loaders):
                    begin = first + (micro_batch * ranks + rank) * micro_batch_size
                    numbers = np.arange(begin, begin + micro_batch_size)
                    assert same(next(loader), stream.batch(numbers))
                    assert loader.window_tokens == stream.locate(numbers).lengths.sum()
    finally:
        for loader in loaders:
            loader.close()


def _rest(settings: StreamSettings) -> dict[str, object]:
    return {name: value for name, value in vars(settings).items() if name != "sources"}


@settings(deadline=None, max_examples=200)
@given(
    ranks=st.sampled_from([1, 2, 3, 4, 8, 1024]),
    per_rank=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    start=st.integers(0, 10**9),
    stop=st.integers(0, 5),
)
def test_stripes_tile_the_steps_whatever_their_number(
    ranks: int, per_rank: int, accumulation: int, start: int, stop: int
) -> None:
    """By arithmetic alone, up to 1,024 ranks over a thousand million samples."""
    batch = ranks * per_rank * accumulation
    rows = []
    for rank in range(ranks):
        stripes = Stripes(
            global_batch_size=batch,
            micro_batch_size=per_rank,
            rank=rank,
            world_size=ranks,
            start_sample=start,
        )
        assert stripes.micro_batches_per_step == accumulation
        rows.append(stripes.samples(np.arange(stop * accumulation, (stop + 2) * accumulation)))
    seen = np.stack(rows, axis=1).ravel()
    assert np.array_equal(seen, start + np.arange(stop * batch, (stop + 2) * batch))


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_workers_change_nothing(mixed: StreamSettings, workers: int) -> None:
    stripes = Stripes(
        global_batch_size=8, micro_batch_size=4, rank=1, world_size=2, start_sample=123
    )
    stream = open_stream(*mixed.sources.values(), **_rest(mixed))
    children = len(psutil.Process().children())
    with BatchLoader(mixed, stripes, workers=workers, messages=2) as loader:
        for number in range(60):
            expected = stream.batch(stripes.samples([number])[0])
            assert same(next(loader), expected)
        assert len(psutil.Process().children()) >= children + workers
    assert len(psutil.Process().children()) <= children + 1  # torch may keep a manager


def test_starting_anywhere_is_going_on(mixed: StreamSettings) -> None:
    options = {"global_batch_size": 4, "micro_batch_size": 2, "rank": 0, "world_size": 1}
    with BatchLoader(mixed, Stripes(**options)) as loader:
        whole = [next(loader) for _ in range(40)]
        assert loader.wait_seconds >= 0
    for step in (1, 3, 7, 18):
        with BatchLoader(mixed, Stripes(start_sample=4 * step, **options)) as loader:
            for expected in whole[2 * step :]:
                assert same(next(loader), expected)


def test_a_closed_loader_stops_and_leaves_no_thread(mixed: StreamSettings) -> None:
    before = threading.active_count()
    stripes = Stripes(global_batch_size=2, micro_batch_size=1, rank=1, world_size=2)
    loader = BatchLoader(mixed, stripes, messages=3)
    assert next(iter(loader)).input_ids.shape[0] == 1
    loader.close()
    loader.close()
    list(loader)
    assert list(loader) == []
    assert threading.active_count() == before


def test_batches_survive_the_journey(mixed: StreamSettings) -> None:
    stream = open_stream(*mixed.sources.values(), **_rest(mixed))
    batches = [stream.batch(np.arange(first, first + 3)) for first in range(0, 30, 3)]
    layout, arrays, size_bytes = laid_out(batches)
    memory = np.empty(size_bytes, dtype=np.uint8)
    fill(memory, arrays)
    assert all(
        same(*pair)
        for pair in zip(unpacked(memory, layout, [None] * len(batches)), batches, strict=True)
    )
    alone = make_objective("causal_lm", input_length_tokens=64)
    batch = open_stream(*mixed.sources.values(), objective=alone).batch(np.arange(4))
    layout, arrays, size_bytes = laid_out([batch])
    # The labels of a decoder are its inputs, and travel once.
    assert size_bytes < 1.5 * batch.input_ids.nbytes
    memory = np.empty(size_bytes, dtype=np.uint8)
    fill(memory, arrays)
    assert same(unpacked(memory, layout, [None])[0], batch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch_size": 9}, "global_batch_size 9 is not divisible by micro_batch_size 2"),
        ({"micro_batch_size": 0}, "micro_batch_size must be at least 1"),
        ({"rank": 2}, "rank must be from 0 to 1"),
        ({"start_sample": -1}, "start_sample must be at least 0"),
    ],
)
def test_impossible_stripes_are_errors(changes: dict[str, int], message: str) -> None:
    options = {"global_batch_size": 8, "micro_batch_size": 2, "rank": 0, "world_size": 2}
    with pytest.raises(DataError, match=message):
        Stripes(**{**options, **changes})


def test_impossible_loaders_are_errors(mixed: StreamSettings, tmp_path: Path) -> None:
    stripes = Stripes(global_batch_size=8, micro_batch_size=2, rank=0, world_size=2)
    with pytest.raises(DataError, match="workers must be at least 0"):
        BatchLoader(mixed, stripes, workers=-1)
    with pytest.raises(DataError, match="messages must be at least 1"):
        BatchLoader(mixed, stripes, messages=0)
    for workers in (0, 2):
        with pytest.raises(DataError, match=r"manifest\.json is missing"):
            BatchLoader(stream_settings(tmp_path), stripes, workers=workers)
