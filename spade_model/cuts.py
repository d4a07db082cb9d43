"""How sequences are cut: into blocks for attention, into two levels for a kernel.

Arithmetic without torch, so that what computes and what counts the cost cut alike.
"""

from __future__ import annotations

from dataclasses import dataclass

from spade_model.config import SpadeConfig

_SMALLEST_BLOCK_TOKENS = 16


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

    @property
    def num_scores(self) -> int:
        """Scores of one head over the sequence."""
        return self.num_blocks * self.block_tokens * self.num_keys


@dataclass(frozen=True)
class Reach:
    """What decides a cut: the length, how far a query sees, and chunks it does not leave."""

    length_tokens: int
    """L."""
    left_tokens: int
    """Farthest visible distance to the left, at most L - 1."""
    right_tokens: int
    """Farthest visible distance to the right; 0 if causal."""
    chunk_tokens: int | None = None
    """Length of the chunks, or None."""


def attention_reach(config: SpadeConfig, length_tokens: int, *, causal: bool) -> Reach:
    """Return how far the queries of a sequence see under a configuration."""
    side, chunk = length_tokens - 1, None
    if config.attention != "full":
        # A length that is only a symbol yet, as in `torch.export`, is compared with nothing.
        known = isinstance(length_tokens, int)
        side = min(config.local_radius_tokens, side) if known else config.local_radius_tokens
    if config.attention == "chunk":
        chunk = config.local_radius_tokens + 1
    return Reach(length_tokens, side, 0 if causal else side, chunk)


def cut(reach: Reach, block_tokens: int, *, whole_neighbours: bool) -> Blocks:
    """Cut a sequence into blocks.

    Args:
        reach: What is to be seen; chunks set the block themselves.
        block_tokens: Queries of a block.
        whole_neighbours: Whether the neighbours of a block come whole, as plain reshaping wants
            them; otherwise only all keys of a block together are a number of blocks.
    """
    left, right = reach.left_tokens, reach.right_tokens
    if reach.chunk_tokens is not None:
        block_tokens, left, right = reach.chunk_tokens, 0, 0
    elif whole_neighbours:
        left, right = (-(-side // block_tokens) * block_tokens for side in (left, right))
    else:
        right += -(left + right) % block_tokens
    return Blocks(block_tokens, -(-reach.length_tokens // block_tokens), left, right)


def cut_for_products(reach: Reach) -> Blocks:
    """Cut for whole-tensor products: blocks are one token longer than the reach."""
    block_tokens = max(reach.left_tokens + 1, _SMALLEST_BLOCK_TOKENS)
    return cut(reach, block_tokens, whole_neighbours=True)


def cut_for_tiles(reach: Reach) -> Blocks:
    """Cut for tiles: large enough for fast products, small enough not to see many keys in vain."""
    return cut(reach, 64 if reach.left_tokens >= 48 else 32, whole_neighbours=False)


def split_length(length_tokens: int) -> tuple[int, int]:
    """Return the numbers of rows and of columns on which a kernel is computed."""
    num_columns = 1 << ((length_tokens - 1).bit_length() + 1) // 2
    return -(-length_tokens // num_columns), num_columns
