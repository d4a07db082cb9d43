"""The order of samples: every window once an epoch, found by arithmetic, and never changing."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest, ShardInfo
from data_pipeline.sample_order import SampleOrder


def manifest_of(shard_tokens: list[int]) -> Manifest:
    shards = tuple(
        ShardInfo(
            file=f"shard-{number:06d}.tar",
            size_bytes=2048,
            documents=1,
            tokens=tokens,
            checksum="0" * 32,
            index_checksum="0" * 32,
        )
        for number, tokens in enumerate(shard_tokens)
    )
    return Manifest(
        format_version=1,
        dtype="<u2",
        vocab_size=600,
        piece_count=500,
        pad_token_id=0,
        eos_token_id=1,
        tokenizer_fingerprint="",
        documents=len(shards),
        tokens=sum(shard_tokens),
        shards=shards,
        source={},
    )


@settings(deadline=None)
@given(
    shard_tokens=st.lists(st.integers(1, 400), min_size=1, max_size=12),
    window_tokens=st.integers(1, 60),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 5),
)
def test_an_epoch_is_every_window_once(
    shard_tokens: list[int], window_tokens: int, seed: int, epoch: int
) -> None:
    expected = [
        (shard, start)
        for shard, tokens in enumerate(shard_tokens)
        for start in range(0, tokens - window_tokens + 1, window_tokens)
    ]
    manifest = manifest_of(shard_tokens)
    if not expected:
        with pytest.raises(DataError, match=f"no window of {window_tokens} tokens fits"):
            SampleOrder(manifest, window_tokens=window_tokens, seed=seed)
        return
    order = SampleOrder(manifest, window_tokens=window_tokens, seed=seed)
    assert order.samples_per_epoch == len(expected)
    samples = np.arange(epoch * len(expected), (epoch + 1) * len(expected))
    epochs, shards, starts = order.locate(samples)
    assert set(epochs.tolist()) == {epoch}
    assert sorted(zip(shards.tolist(), starts.tolist(), strict=True)) == expected


@settings(deadline=None)
@given(samples=st.lists(st.integers(0, 10**12), min_size=1, max_size=30), seed=st.integers(0, 99))
def test_a_sample_does_not_depend_on_its_company(samples: list[int], seed: int) -> None:
    order = SampleOrder(manifest_of([1000, 7, 5000, 333]), window_tokens=10, seed=seed)
    together = np.stack(order.locate(samples))
    alone = [np.stack(order.locate([sample]))[:, 0] for sample in samples]
    assert np.array_equal(together, np.stack(alone, axis=1))


def test_epochs_and_seeds_differ() -> None:
    manifest = manifest_of([10_000, 10_000])
    order = SampleOrder(manifest, window_tokens=10, seed=0)
    first, second = (np.stack(order.locate(np.arange(2000) + 2000 * epoch))[1:] for epoch in (0, 1))
    other = np.stack(SampleOrder(manifest, window_tokens=10, seed=1).locate(np.arange(2000)))[1:]
    for pair in ((first, second), (first, other)):
        assert (np.abs(pair[0] - pair[1]).sum(axis=0) == 0).sum() < 10


def test_the_order_never_changes() -> None:
    order = SampleOrder(manifest_of([50_000, 64, 3, 99_999]), window_tokens=64, seed=17)
    epochs, shards, starts = order.locate([0, 1, 2, 2342, 2343, 2344, 2345, 10**9])
    assert (epochs.tolist(), shards.tolist(), starts.tolist()) == GOLDEN_ORDER


# Frozen: a change here is another order, which needs a new version of it.
GOLDEN_ORDER = (
    [0, 0, 0, 0, 0, 1, 1, 426621],
    [3, 3, 3, 3, 3, 3, 0, 3],
    [51328, 73280, 55808, 30976, 41088, 91776, 32896, 51520],
)


def test_seeking_takes_no_time_however_large_the_data() -> None:
    manifest = manifest_of([2**50] * 16)
    order = SampleOrder(manifest, window_tokens=512, seed=0)
    started_seconds = time.perf_counter()
    order.locate(np.arange(10**13, 10**13 + 4096))
    # Milliseconds in fact; the bound only has to exclude anything that grows with the data.
    assert time.perf_counter() - started_seconds < 2


def test_impossible_requests_are_errors() -> None:
    manifest = manifest_of([100])
    with pytest.raises(DataError, match="window_tokens must be at least 1"):
        SampleOrder(manifest, window_tokens=0, seed=0)
    with pytest.raises(DataError, match="seed must be"):
        SampleOrder(manifest, window_tokens=10, seed=-1)
    with pytest.raises(DataError, match="the largest shard has 100 tokens"):
        SampleOrder(manifest, window_tokens=101, seed=0)
    with pytest.raises(DataError, match="numbers begin at 0"):
        SampleOrder(manifest, window_tokens=10, seed=0).locate([3, -1])
