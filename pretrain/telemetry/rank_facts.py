"""What every rank says of itself at a log interval, and which of them lags behind."""

from __future__ import annotations

import resource
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from pretrain.ranks import Ranks

OWN_SECONDS = "time/own_seconds"
"""Seconds a step that a rank worked and did not wait for others, see `StepTimer.own_seconds`."""


def memory_facts(device: torch.device) -> dict[str, float]:
    """Most memory this process has had, in bytes.

    Returns:
        ``memory/host_peak_bytes`` and, on a GPU, ``memory/device_peak_bytes`` (of tensors) and
        ``memory/device_reserved_bytes`` (with what the allocator keeps).
    """
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    facts = {"memory/host_peak_bytes": float(kibibytes * 1024)}
    if device.type == "cuda":
        facts["memory/device_peak_bytes"] = float(torch.cuda.max_memory_allocated(device))
        facts["memory/device_reserved_bytes"] = float(torch.cuda.max_memory_reserved(device))
    return facts


def gather_rank_facts(
    facts: Mapping[str, float], ranks: Ranks, group: Any
) -> dict[str, list[float]] | None:
    """Send a few numbers of each rank to rank 0; every rank must call this.

    All but rank 0 send one small message and go on; rank 0 takes in one from each.

    Args:
        facts: The same names on every rank, in the same order.
        ranks: This process's place.
        group: Of gloo, with all ranks.

    Returns:
        On rank 0 the values of all ranks, in their order, by name; None elsewhere.
    """
    mine = torch.tensor(list(facts.values()), dtype=torch.float64)
    first = ranks.rank == 0
    received = [torch.empty_like(mine) for _ in range(ranks.world_size)] if first else None
    dist.gather(mine, received, dst=0, group=group)
    if received is None:
        return None
    table = torch.stack(received).T.tolist()
    return dict(zip(facts, table, strict=True))


def summarize_rank_facts(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """For each fact the mean and the largest over the ranks, and whose that is.

    Args:
        values: Of all ranks, by name.

    Returns:
        For the metrics: ``NAME/mean``, ``NAME/max`` and ``NAME/max_rank``.
    """
    record = {}
    for name, of_ranks in values.items():
        largest = max(of_ranks)
        record[f"{name}/mean"] = statistics.fmean(of_ranks)
        record[f"{name}/max"] = largest
        record[f"{name}/max_rank"] = of_ranks.index(largest)
    return record


def straggler_line(own_seconds: Sequence[float], percent: float) -> str | None:
    """Name the slowest rank if it holds the others up.

    Args:
        own_seconds: Of each rank, a step.
        percent: How much slower than the middle rank is worth a line.

    Returns:
        The line, or None. Two ranks have no middle; there the faster one is compared with.
    """
    if len(own_seconds) < 2:
        return None
    slowest = max(own_seconds)
    usual = statistics.median_low(own_seconds)
    if usual <= 0 or slowest <= usual * (1 + percent / 100):
        return None
    return (
        f"rank {list(own_seconds).index(slowest)} is slow: it works {slowest:.3g} s a step, "
        f"{(slowest / usual - 1) * 100:.0f} % longer than the middle rank's {usual:.3g} s"
    )
