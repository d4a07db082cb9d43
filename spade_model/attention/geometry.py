"""Which tokens may see which: the pattern of attention in the long stack, and a batch's masks.

Shapes in this package: B rows, L tokens, H heads, D head width, R distances, W blocks of b queries
with K keys each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spade_model.config import SpadeConfig
from spade_model.cuts import Reach, attention_reach

# Finite, so that a row without any valid key yields a meaningless but finite result. In float32
# its exponential is exactly 0 beside any real score, so masked keys have exactly no influence.
MASKED_SCORE = -1e9


@dataclass(frozen=True)
class Geometry(Reach):
    """Made once for a batch, used by every layer.

    A query at position i may see a key at position j if ``-left <= j - i <= right``, both are in
    the same chunk where there are chunks, the key is valid, and both are of one segment.
    """

    segments: Tensor | None = None
    """Segment of every key, int64 [B, L], -1 where padded; None if nothing needs a mask. Without
    segment ids all valid keys are of segment 0."""
    segmented: bool = False
    """Whether there are segment ids, so that queries differ in what they may see."""

    @property
    def sees_everything(self) -> bool:
        """Whether no token is out of reach; unknown, hence false, while the length is a symbol."""
        if self.chunk_tokens is not None:
            return False
        if isinstance(self.length_tokens, torch.SymInt):
            return isinstance(self.left_tokens, torch.SymInt)
        return self.left_tokens == self.length_tokens - 1

    @property
    def num_distances(self) -> int:
        """R = left + right + 1."""
        return self.left_tokens + self.right_tokens + 1

    def distances(self, device: torch.device) -> Tensor:
        """Return ``key - query`` for each of the R distances, ascending, int64 [R]."""
        return torch.arange(-self.left_tokens, self.right_tokens + 1, device=device)

    def allowed(self, device: torch.device) -> Tensor:
        """Return who sees whom as a dense mask, bool [B or 1, L, L]; quadratic."""
        position = torch.arange(self.length_tokens, device=device)
        distance = position[None, :] - position[:, None]
        allowed = (distance >= -self.left_tokens) & (distance <= self.right_tokens)
        if self.chunk_tokens is not None:
            chunk = position // self.chunk_tokens
            allowed &= chunk[None, :] == chunk[:, None]
        if self.segments is None:
            return allowed[None]
        if self.segmented:
            same = self.segments[:, None, :] == self.segments[:, :, None]
            return allowed & same & (self.segments >= 0)[:, None, :]
        return allowed & (self.segments >= 0)[:, None, :]


def make_geometry(
    config: SpadeConfig,
    length_tokens: int,
    *,
    causal: bool,
    valid: Tensor | None = None,
    segment_ids: Tensor | None = None,
) -> Geometry:
    """Describe a batch.

    Args:
        config: The architecture.
        length_tokens: L.
        causal: Whether tokens see no future.
        valid: Bool [B, L], False where padded, or None.
        segment_ids: int64 [B, L], a run of equal ids is one document of a packed row, or None.
    """
    reach = attention_reach(config, length_tokens, causal=causal)
    segments = None
    if segment_ids is not None:
        changes = segment_ids[:, 1:] != segment_ids[:, :-1]
        segments = torch.nn.functional.pad(changes.cumsum(dim=1), (1, 0))
    elif valid is not None:
        segments = torch.zeros_like(valid, dtype=torch.int64)
    if segments is not None and valid is not None:
        segments = segments.masked_fill(~valid, -1)
    return Geometry(
        length_tokens=length_tokens,
        left_tokens=reach.left_tokens,
        right_tokens=reach.right_tokens,
        chunk_tokens=reach.chunk_tokens,
        segments=segments,
        segmented=segment_ids is not None,
    )
