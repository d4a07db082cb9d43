"""The order of samples: every window once an epoch, found by arithmetic, and never changing."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.reading.sample_order import SampleOrder

COUNTS = st.integers(1, 5).flatmap(
    lambda buckets: st.lists(
        st.lists(st.integers(0, 30), min_size=buckets, max_size=buckets), min_size=1, max_size=12
    )
)


def places_of(order: SampleOrder, samples: np.ndarray) -> list[tuple[int, int, int]]:
    places = order.locate(samples)
    return list(
        zip(places.shards.tolist(), places.buckets.tolist(), places.ranks.tolist(), strict=True)
    )


@settings(deadline=None)
@given(
    counts=COUNTS,
    group_shards=st.one_of(st.none(), st.integers(1, 13)),
    block_samples=st.integers(1, 9),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 5),
)
def test_an_epoch_is_every_window_once(
    counts: list[list[int]],
    group_shards: int | None,
    block_samples: int,
    seed: int,
    epoch: int,
) -> None:
    expected = [
        (shard, bucket, rank)
        for shard, row in enumerate(counts)
        for bucket, count in enumerate(row)
        for rank in range(count)
    ]
    options = {"seed": seed, "group_shards": group_shards, "block_samples": block_samples}
    if not expected:
        with pytest.raises(DataError, match="holds no window"):
            SampleOrder(counts, **options)
        return
    order = SampleOrder(counts, **options)
    assert order.samples_per_epoch == len(expected)
    samples = np.arange(epoch * len(expected), (epoch + 1) * len(expected))
    assert set(order.locate(samples).epochs.tolist()) == {epoch}
    assert sorted(places_of(order, samples)) == expected


@settings(deadline=None)
@given(
    samples=st.lists(st.integers(0, 10**12), min_size=1, max_size=30),
    seed=st.integers(0, 99),
    group_shards=st.sampled_from([None, 1, 2]),
)
def test_a_sample_does_not_depend_on_its_company(
    samples: list[int], seed: int, group_shards: int | None
) -> None:
    counts = [[100, 3], [0, 7], [500, 20], [33, 0]]
    order = SampleOrder(counts, seed=seed, group_shards=group_shards, block_samples=4)
    together = np.stack(order.locate(samples))
    alone = [np.stack(order.locate([sample]))[:, 0] for sample in samples]
    assert np.array_equal(together, np.stack(alone, axis=1))


def test_epochs_seeds_and_sources_differ() -> None:
    counts = [1000, 1000]
    order = SampleOrder(counts, seed=0)
    first, second = (np.stack(order.locate(np.arange(2000) + 2000 * epoch))[1:] for epoch in (0, 1))
    others = [
        np.stack(SampleOrder(counts, seed=seed, source_key=key).locate(np.arange(2000)))[1:]
        for seed, key in ((1, 0), (0, 1))
    ]
    for other in (second, *others):
        assert (np.abs(first - other).sum(axis=0) == 0).sum() < 10


def test_the_order_never_changes() -> None:
    order = SampleOrder(
        [[700, 1], [10, 20], [3, 0], [999, 5]], seed=17, group_shards=3, block_samples=4
    )
    places = order.locate([0, 1, 2, 3, 4, 1737, 1738, 10**9])
    assert [column.tolist() for column in places] == GOLDEN_ORDER


# Frozen: a change here is another order, which needs a new version of it.
GOLDEN_ORDER = [
    [0, 0, 0, 0, 0, 0, 1, 575373],
    [0, 1, 1, 1, 0, 3, 3, 1],
    [0, 1, 1, 1, 0, 0, 0, 1],
    [565, 17, 19, 14, 42, 393, 662, 3],
]


def test_a_group_is_read_before_the_next() -> None:
    counts = np.full(32, 50)
    order = SampleOrder(counts, seed=3, group_shards=4)
    shards = order.locate(np.arange(order.samples_per_epoch)).shards.reshape(8, 200)
    groups = [set(part.tolist()) for part in shards]
    assert all(len(group) == 4 for group in groups)
    assert set().union(*groups) == set(range(32))
    for number, group in enumerate(groups):
        assert set(order.upcoming_shards(200 * number + 17, 4)) == group
    # Within a group the shards are mixed, not read one after the other.
    assert len(set(shards[0][:40].tolist())) == 4


def test_blocks_hold_windows_of_one_bucket() -> None:
    order = SampleOrder([[500, 300, 77]] * 4, seed=1, block_samples=16)
    buckets = order.locate(np.arange(order.samples_per_epoch)).buckets
    whole = len(buckets) // 16 * 16
    mixed = sum(len(set(block.tolist())) > 1 for block in buckets[:whole].reshape(-1, 16))
    assert mixed <= 2
    # Blocks of a bucket do not come in a row.
    changes = np.diff(buckets[:whole:16]) != 0
    assert changes.mean() > 0.4


@pytest.mark.parametrize("group_shards", [None, 64])
def test_the_order_is_as_good_as_a_full_shuffle(group_shards: int | None) -> None:
    """Neighbours are unrelated, and every shard is spread over its group evenly."""
    counts = np.full(256, 200)
    order = SampleOrder(counts, seed=5, group_shards=group_shards)
    places = order.locate(np.arange(order.samples_per_epoch))
    first = places.shards[: 200 * (group_shards or 256)]
    if group_shards is not None:
        first = np.unique(first, return_inverse=True)[1]
    shards = first / first.max()
    full = np.random.default_rng(0).permutation(first) / first.max()
    lag_correlation = np.corrcoef(shards[:-1], shards[1:])[0, 1]
    assert abs(lag_correlation) < 4 / np.sqrt(len(shards))
    distance = np.abs(np.diff(shards)).mean()
    assert distance == pytest.approx(np.abs(np.diff(full)).mean(), rel=0.03)
    # Chi-squared of shards against tenths of the group: 1 for independent draws, below for even.
    tenths = np.arange(len(first)) * 10 // len(first)
    table = np.zeros((first.max() + 1, 10))
    np.add.at(table, (first, tenths), 1)
    assert ((table - 20) ** 2 / 20).mean() < 1.2


def test_a_thousand_million_samples_take_no_time_and_no_memory() -> None:
    """The claim is 50 ms and 20 MB; the bound on time is looser for a busy machine."""
    counts = np.full(16_384, 61_036)
    tracemalloc.start()
    started_seconds = time.perf_counter()
    order = SampleOrder(counts, seed=0, group_shards=64)
    order.locate(np.arange(500_000_000, 500_004_096))
    seconds = time.perf_counter() - started_seconds
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert order.samples_per_epoch > 10**9
    assert peak_bytes < 20e6
    assert seconds < 1


def test_impossible_requests_are_errors() -> None:
    with pytest.raises(DataError, match="group_shards must be at least 1"):
        SampleOrder([5], seed=0, group_shards=0)
    with pytest.raises(DataError, match="block_samples must be at least 1"):
        SampleOrder([5], seed=0, block_samples=0)
    with pytest.raises(DataError, match="seed must be"):
        SampleOrder([5], seed=-1)
    with pytest.raises(DataError, match="numbers begin at 0"):
        SampleOrder([5], seed=0).locate([3, -1])
