"""What the backends that work in blocks have in common: biases and masks of every block."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from spade_model.attention.geometry import MASKED_SCORE, Geometry
from spade_model.cuts import Blocks


def block_bias(bias: Tensor | None, geometry: Geometry, blocks: Blocks, like: Tensor) -> Tensor:
    """Return what is added to the scores of every block, [H or 1, b, K] in float32 at least.

    A bias depends on ``key - query`` only, so it is one vector a head, seen through a sliding
    window; distances out of reach get `MASKED_SCORE`.

    Args:
        bias: By distance, [H, R], or None.
        geometry: The pattern.
        blocks: The cut.
        like: The projections, whose type and device decide.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    if bias is None:
        bias = like.new_zeros(1, geometry.num_distances, dtype=dtype)
    query = blocks.block_tokens
    # Query i meets key j of its block at distance j - left - i.
    low, high = blocks.left_tokens + query - 1, blocks.right_tokens + query - 1
    missing = (low - geometry.left_tokens, high - geometry.right_tokens)
    by_distance = functional.pad(bias.to(dtype), missing, value=MASKED_SCORE)
    return by_distance.unfold(1, blocks.num_keys, 1).flip(1)


def forbidden_keys(geometry: Geometry, blocks: Blocks, device: torch.device) -> Tensor:
    """Return which keys of which block are no keys, bool [B or 1, W, b or 1, K].

    They lie outside the sequence, are padded, or (then it differs between the queries of a block)
    are of another segment.
    """
    length, left = geometry.length_tokens, blocks.left_tokens
    segments = geometry.segments
    if segments is None:
        segments = torch.zeros(1, length, dtype=torch.int64, device=device)
    tail = blocks.padded_tokens - left - length
    keys = functional.pad(segments, (left, tail), value=-1)
    windows = keys.unfold(1, blocks.num_keys, blocks.block_tokens)[:, :, None, :]
    if not geometry.segmented:
        return windows < 0
    queries = keys[:, left : left + blocks.num_blocks * blocks.block_tokens]
    queries = queries.view(len(keys), blocks.num_blocks, blocks.block_tokens, 1)
    return (windows < 0) | (windows != queries)
