"""Chunks that begin where each row begins, so that padding in front does not move them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spade_model.attention.backends import AttentionPlan, make_plan
from spade_model.attention.geometry import Geometry, make_geometry
from spade_model.config import AttentionBackend, SpadeConfig


def leading_padding(valid: Tensor) -> Tensor:
    """Return how many tokens in front of each row's first valid one are padded, int64 [B].

    A row of padding alone counts all of its tokens.

    Args:
        valid: Bool [B, L].
    """
    return (valid.long().cumsum(dim=1) == 0).sum(dim=1)


@dataclass(frozen=True)
class AlignedChunks:
    """An `AttentionPlan` around another one, to which rows are shown moved to the right.

    By less than a chunk, so that the chunks of all rows begin at multiples of their length.
    """

    plan: AttentionPlan
    """For rows of ``L + chunk - 1`` tokens."""
    places: Tensor
    """Where each token goes, int64 [B, L]."""
    length_tokens: int
    """Of the moved rows."""

    def attend(
        self, query_key_value: Tensor, scale: float, bias: Tensor | None, dropout: float
    ) -> Tensor:
        """See `AttentionPlan.attend`."""
        num_rows = self.places.shape[0]  # Not its `len`, which may be no symbol.
        rows = torch.arange(num_rows, device=self.places.device)[:, None]
        shape = (num_rows, self.length_tokens, *query_key_value.shape[2:])
        moved = query_key_value.new_zeros(shape).index_put((rows, self.places), query_key_value)
        return self.plan.attend(moved, scale, bias, dropout)[rows, self.places]


def make_aligned_plan(
    config: SpadeConfig,
    positions: Tensor,
    *,
    causal: bool,
    valid: Tensor,
    segment_ids: Tensor | None,
    backend: AttentionBackend,
) -> tuple[Geometry, AttentionPlan]:
    """Prepare chunk attention for rows that begin anywhere.

    Args:
        config: The architecture, ``attention: chunk``.
        positions: Of the first token given, int64 [B], counted from the row's first valid token;
            negative where padding comes first.
        causal: Whether tokens see no future.
        valid: Bool [B, L].
        segment_ids: int64 [B, L] or None.
        backend: Who computes it.

    Returns:
        The pattern of the moved rows, and the plan for those given.
    """
    batch, length = valid.shape
    chunk = config.local_radius_tokens + 1
    moved_length = length + chunk - 1
    places = positions.remainder(chunk)[:, None] + torch.arange(length, device=valid.device)

    def move(x: Tensor) -> Tensor:
        return x.new_zeros(batch, moved_length).scatter(1, places, x)

    geometry = make_geometry(
        config,
        moved_length,
        causal=causal,
        valid=move(valid),
        segment_ids=None if segment_ids is None else move(segment_ids),
    )
    plan = make_plan(backend, geometry, valid.device)
    return geometry, AlignedChunks(plan, places, moved_length)
