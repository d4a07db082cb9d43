"""How the blocked backends cut a sequence: blocks of queries, and the keys around each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from spade_model.attention.geometry import MASKED_SCORE, Geometry


@dataclass(frozen=True)
class Blocks:
    """W blocks of b queries; block w sees K keys from ``w b - left`` on."""

    block_tokens: int
    """b."""
    num_blocks: int
    """W = ceil(L / b)."""
    left_tokens: int
    """Keys in front of a block."""
    right_tokens: int
    """Keys behind a block."""

    @property
    def num_keys(self) -> int:
        """K."""
        return self.left_tokens + self.block_tokens + self.right_tokens

    @property
    def padded_tokens(self) -> int:
        """Keys of all blocks together."""
        return self.left_tokens + self.num_blocks * self.block_tokens + self.right_tokens


def cut(geometry: Geometry, block_tokens: int, *, whole_neighbours: bool) -> Blocks:
    """Cut a sequence into blocks.

    Args:
        geometry: The pattern; chunks set the block themselves.
        block_tokens: Queries of a block.
        whole_neighbours: Whether the neighbours of a block come whole, as plain reshaping wants
            them; otherwise only all keys of a block together are a number of blocks.
    """
    left, right = geometry.left_tokens, geometry.right_tokens
    if geometry.chunk_tokens is not None:
        block_tokens, left, right = geometry.chunk_tokens, 0, 0
    elif whole_neighbours:
        left, right = (-(-reach // block_tokens) * block_tokens for reach in (left, right))
    else:
        right += -(left + right) % block_tokens
    return Blocks(block_tokens, -(-geometry.length_tokens // block_tokens), left, right)


def block_bias(bias: Tensor, geometry: Geometry, blocks: Blocks) -> Tensor:
    """Return what is added to the scores of every block, [H, b, K].

    A bias depends on ``key - query`` only, so it is one vector a head, seen through a sliding
    window; distances out of reach get `MASKED_SCORE`.

    Args:
        bias: By distance, [H, R].
        geometry: The pattern.
        blocks: The cut.
    """
    query = blocks.block_tokens
    # Query i meets key j of its block at distance j - left - i.
    low, high = blocks.left_tokens + query - 1, blocks.right_tokens + query - 1
    missing = (low - geometry.left_tokens, high - geometry.right_tokens)
    by_distance = functional.pad(bias, missing, value=MASKED_SCORE)
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
