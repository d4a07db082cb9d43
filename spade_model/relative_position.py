"""The relative position buckets of T5 (Raffel et al., arXiv 1910.10683, section 2.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def relative_position_bucket(
    relative_position: Tensor, *, num_buckets: int, max_distance: int
) -> Tensor:
    """Map ``key - query`` to a row of the relative position table.

    Half of the buckets are for the past and the present, half for the future. Of each half the
    first half holds one distance a bucket, the rest grow by a constant factor up to
    `max_distance`; larger distances share the last one.

    Args:
        relative_position: Integers of any shape.
        num_buckets: A multiple of 4.
        max_distance: Above ``num_buckets / 4``.

    Returns:
        int64 of the same shape, in [0, num_buckets).
    """
    one_side = num_buckets // 2
    exact = one_side // 2
    distance = relative_position.abs()
    # Float32 decides ties at the bucket edges; every published table was computed in it.
    ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    logarithmic = exact + (ratio * (one_side - exact)).long()
    bucket = torch.where(distance < exact, distance, logarithmic.clamp(max=one_side - 1))
    return bucket + one_side * (relative_position > 0).long()
