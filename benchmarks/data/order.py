"""What the order of samples costs: the first numbers of a rank at half an epoch of many samples."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from typing import Any

from benchmarks.common.report import Table
from benchmarks.data.cell import run_cell
from benchmarks.data.options import Options

_WANTED = 4_096
# Windows of 2,048 ids of two bytes in a shard of 256 MiB.
_SHARD_SAMPLES = 2**16
_RANKS, _WORKERS = 8, 4
_GROUP_SHARDS = 64
_GROWTH = 10


def order_tables(options: Options) -> list[Table]:
    """Measure every size; a way that would take too long or too much memory is left out."""
    rows: list[dict[str, Any]] = []
    notes = []
    left_out: set[str] = set()
    for samples in options.order_sizes:
        row: dict[str, Any] = {"samples": samples}
        for way in _WAYS:
            if way in left_out:
                row[f"{way} s"] = row[f"{way} MiB"] = None
                continue
            found = run_cell({"kind": "order", "way": way, "samples": samples})
            if "skipped" in found:
                left_out.add(way)
                notes.append(f"{way} skipped: {found['skipped']}")
                row[f"{way} s"] = row[f"{way} MiB"] = None
                continue
            row[f"{way} s"], row[f"{way} MiB"] = found["cpu_seconds"], found["extra_bytes"] / 2**20
            if reason := _too_much(found, options):
                left_out.add(way)
                notes.append(f"{way} is not asked beyond {samples:,}: ten times as many {reason}")
        rows.append(row)
    how = (
        f"CPU seconds and peak MiB until the first {_WANTED:,} sample numbers of rank 0 of "
        f"{_RANKS} at half an epoch; shards of {_SHARD_SAMPLES:,} samples; reading not included"
    )
    return [Table("order", "Cost of the order", rows, (how, *notes))]


def _too_much(found: dict[str, Any], options: Options) -> str | None:
    """Why a larger size is out of reach, judged by this one."""
    import psutil

    seconds, size_bytes = _GROWTH * found["cpu_seconds"], _GROWTH * found["extra_bytes"]
    if size_bytes > 0.8 * psutil.virtual_memory().available:
        return f"would need about {size_bytes / 2**30:.0f} GiB"
    if seconds > options.longest_order_seconds:
        return f"would take about {seconds:.0f} s"
    return None


def measure_cell(cell: dict[str, Any]) -> dict[str, Any]:
    """Measure one way at one size."""
    from benchmarks.common.machine import PeakMemory

    seek = _WAYS[cell["way"]](cell["samples"])
    with PeakMemory() as peak:
        started = time.process_time()
        found = seek()
        taken = time.process_time() - started
    assert len(set(found)) == _WANTED
    return {"cpu_seconds": taken, "extra_bytes": peak.extra_bytes}


def _ours(group_shards: int | None) -> Callable[[int], Callable[[], list[int]]]:
    def prepare(samples: int) -> Callable[[], list[int]]:
        import numpy as np

        from data_pipeline.reading.sample_order import SampleOrder

        counts = np.full(-(-samples // _SHARD_SAMPLES), _SHARD_SAMPLES)
        counts[-1] -= counts.sum() - samples

        def seek() -> list[int]:
            order = SampleOrder(counts, seed=0, group_shards=group_shards)
            # What rank 0 of 8 takes: every eighth micro-batch of one sample.
            places = order.locate(samples // 2 + _RANKS * np.arange(_WANTED))
            found: list[int] = (places.shards * _SHARD_SAMPLES + places.ranks).tolist()
            return found

        return seek

    return prepare


def _torch_sampler(samples: int) -> Callable[[], list[int]]:
    import torch
    from torch.utils.data import RandomSampler

    def seek() -> list[int]:
        sampler = RandomSampler(range(samples), generator=torch.Generator().manual_seed(0))
        return list(islice(sampler, samples // 2, samples // 2 + _WANTED * _RANKS, _RANKS))

    return seek


def _permutation(samples: int) -> Callable[[], list[int]]:
    import numpy as np

    def seek() -> list[int]:
        order = np.arange(samples, dtype=np.uint32)
        np.random.Generator(np.random.PCG64(0)).shuffle(order)
        start = samples // 2
        found: list[int] = order[start : start + _WANTED * _RANKS : _RANKS].tolist()
        return found

    return seek


def _mosaic(samples: int) -> Callable[[], list[int]]:
    import numpy as np

    from benchmarks.data.loaders.mosaic import stand_in_for_torchvision

    stand_in_for_torchvision()
    from streaming.base.partition import get_partitions
    from streaming.base.shuffle import get_shuffle

    sizes = np.full(-(-samples // _SHARD_SAMPLES), _SHARD_SAMPLES)
    sizes[-1] -= sizes.sum() - samples

    def seek() -> list[int]:
        # As StreamingDataset makes an epoch: [nodes, ranks, workers, batches, batch].
        places = get_partitions("relaxed", samples, 1, 1, _RANKS, _WORKERS, 16, samples // 2, 1)
        shuffled = get_shuffle("py1e", sizes, 1, 0, 0, 262_144)
        numbers = np.where(places == -1, -1, shuffled[places])
        mine = numbers[0, 0].transpose(1, 0, 2).ravel()
        found: list[int] = mine[mine >= 0][:_WANTED].tolist()
        return found

    return seek


_WAYS: dict[str, Callable[[int], Callable[[], list[int]]]] = {
    "ours": _ours(None),
    f"ours, groups of {_GROUP_SHARDS} shards": _ours(_GROUP_SHARDS),
    "mosaic py1e": _mosaic,
    "full permutation (OLMo)": _permutation,
    "torch RandomSampler": _torch_sampler,
}
