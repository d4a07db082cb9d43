"""What attention knows of distances: T5's learned biases, ALiBi's slopes, rotations."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def relative_position_bucket(
    relative_position: Tensor, *, num_buckets: int, max_distance: int, bidirectional: bool = True
) -> Tensor:
    """Map ``key - query`` to a row of a table of biases (Raffel et al., arXiv 1910.10683, 2.1).

    If bidirectional, half of the buckets are for the past and the present, half for the future;
    otherwise all are for the past and the present, and every future distance falls into bucket 0.
    The first half of a side holds one distance a bucket, the rest grow by a constant factor up to
    `max_distance`; larger distances share the last one.

    Args:
        relative_position: Integers of any shape.
        num_buckets: A multiple of 4.
        max_distance: Above the number of exact distances, ``num_buckets / 4`` or ``/ 2``.
        bidirectional: Whether the future has buckets.

    Returns:
        int64 of the same shape, in [0, num_buckets).
    """
    one_side = num_buckets // 2 if bidirectional else num_buckets
    exact = one_side // 2
    distance = relative_position.abs() if bidirectional else (-relative_position).clamp(min=0)
    # Float32 decides ties at the bucket edges; every published table was computed in it.
    ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    logarithmic = exact + (ratio * (one_side - exact)).long()
    bucket = torch.where(distance < exact, distance, logarithmic.clamp(max=one_side - 1))
    if bidirectional:
        bucket = bucket + one_side * (relative_position > 0).long()
    return bucket


def alibi_slopes(num_heads: int) -> list[float]:
    """Return the slope of each head (Press et al., arXiv 2108.12409, section 3).

    For n heads, n a power of two, they are ``2 ** (-8 k / n)`` for k = 1 … n. Other numbers take
    the slopes of the power below, and every second one of the power above.
    """
    power = 1 << (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * k / power) for k in range(1, power + 1)]
    between = [2.0 ** (-8 * k / (2 * power)) for k in range(1, 2 * power + 1, 2)]
    return (slopes + between)[:num_heads]


def alibi_bias(distances: Tensor, num_heads: int) -> Tensor:
    """Return ``-slope * |distance|``, float32 [H, *distances.shape]; symmetric if bidirectional."""
    slopes = torch.tensor(alibi_slopes(num_heads), device=distances.device)
    return -slopes.view(-1, *[1] * distances.ndim) * distances.abs().float()


def rotary_angles(positions: Tensor, head_dim: int) -> Tensor:
    """Return the angle of each pair of features at each position (Su et al., arXiv 2104.09864).

    Pair k of D / 2 turns by ``10000 ** (-2 k / D)`` a token. Computed in float64: at a million
    tokens a float32 angle would be off by a sixteenth.

    Args:
        positions: int64 [..., T].
        head_dim: D, even.

    Returns:
        float64 [..., T, D / 2], within one turn.
    """
    pair = torch.arange(head_dim // 2, dtype=torch.float64, device=positions.device)
    angles = positions[..., None].double() * 10000.0 ** (-2 * pair / head_dim)
    return torch.remainder(angles, 2 * math.pi)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the pairs (k, k + D / 2) of queries or keys, so that products depend on distances.

    Args:
        x: [B, T, H, D].
        angles: [T, D / 2] or [B, T, D / 2].

    Returns:
        [B, T, H, D] in the type of `x`, computed in float32 at least.
    """
    precise = torch.promote_types(x.dtype, torch.float32)
    cosine = torch.cos(angles).to(precise)[..., None, :]
    sine = torch.sin(angles).to(precise)[..., None, :]
    first, second = x.to(precise).chunk(2, dim=-1)
    turned = [first * cosine - second * sine, second * cosine + first * sine]
    return torch.cat(turned, dim=-1).to(x.dtype)
