"""Attention as its definition says: every score, one mask, one softmax. Quadratic in the length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from spade_model.attention.geometry import MASKED_SCORE, Geometry


@dataclass(frozen=True)
class ReferenceAttention:
    """An `AttentionPlan` for one batch."""

    geometry: Geometry
    allowed: Tensor
    """Bool [B or 1, 1, L, L]."""
    distance_index: Tensor
    """Row of the bias by distance for each pair, int64 [L, L]; anything where out of reach."""
    record: Callable[[Tensor], None] | None = None
    """Is given the weights [B, H, L, L] of each layer, before dropout."""

    @classmethod
    def prepare(cls, geometry: Geometry, device: torch.device) -> ReferenceAttention:
        """Write out the mask of a batch."""
        position = torch.arange(geometry.length_tokens, device=device)
        index = position[None, :] - position[:, None] + geometry.left_tokens
        index = index.clamp(0, geometry.num_distances - 1)
        return cls(geometry, geometry.allowed(device)[:, None], index)

    def attend(
        self, query_key_value: Tensor, scale: float, bias: Tensor | None, dropout: float
    ) -> Tensor:
        """See `AttentionPlan.attend`."""
        query, key, value = (x.transpose(1, 2) for x in query_key_value.unbind(2))
        scores = (query * scale) @ key.transpose(-1, -2)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if bias is not None:
            scores = scores + bias[:, self.distance_index]
        weights = torch.softmax(scores.masked_fill(~self.allowed, MASKED_SCORE), dim=-1)
        weights = weights.to(value.dtype)
        if self.record is not None:
            self.record(weights)
        weights = functional.dropout(weights, dropout, training=dropout > 0.0)
        return (weights @ value).transpose(1, 2)
