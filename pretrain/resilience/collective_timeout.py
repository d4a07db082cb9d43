"""One time-out for all groups of ranks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist


def carry_timeout(seconds: float) -> None:
    """Give a time-out to the group of all ranks and to every group that is made from now on.

    DeepSpeed makes groups of its own without one, which then wait for as long as the backend
    likes, whatever the first group was given. Call it once, after `init_distributed` and before
    other groups are made.
    """
    timeout = timedelta(seconds=seconds)
    if dist.group.WORLD is not None:
        dist.group.WORLD.set_timeout(timeout)
    new_group = dist.new_group

    @functools.wraps(new_group)
    def with_timeout(ranks: Sequence[int] | None = None, *rest: Any, **keywords: Any) -> Any:
        if not rest and keywords.get("timeout") is None:
            keywords["timeout"] = timeout
        return new_group(ranks, *rest, **keywords)

    dist.new_group = with_timeout
