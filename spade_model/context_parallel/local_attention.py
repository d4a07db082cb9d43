"""Attention of a part over itself and its halos, by any backend for whole sequences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spade_model.attention.backends import AttentionPlan, make_plan
from spade_model.attention.chunks import make_aligned_plan
from spade_model.attention.geometry import make_geometry
from spade_model.attention.long import AttentionContext, position_context
from spade_model.config import AttentionBackend, SpadeConfig
from spade_model.context_parallel.group import ContextGroup
from spade_model.context_parallel.halo import Halo
from spade_model.context_parallel.halo_exchange import widened_projections


@dataclass(frozen=True)
class HaloAttention:
    """An `AttentionPlan` for a part, around a plan for the part and its halos."""

    plan: AttentionPlan
    """For W tokens."""
    halo: Halo
    group: ContextGroup

    def attend(
        self, query_key_value: Tensor, scale: float, bias: Tensor | None, dropout: float
    ) -> Tensor:
        """See `AttentionPlan.attend`."""
        wide = widened_projections(query_key_value, self.halo, self.group)
        attended = self.plan.attend(wide, scale, bias, dropout)
        return attended[:, self.halo.left_tokens : self.halo.left_tokens + self.halo.length_tokens]


def halo_attention_context(
    config: SpadeConfig,
    halo: Halo,
    group: ContextGroup,
    *,
    batch_size: int,
    start_token: int,
    causal: bool,
    wide_valid: Tensor | None,
    wide_segment_ids: Tensor | None,
    num_leading: Tensor | None,
    device: torch.device,
    backend: AttentionBackend,
) -> AttentionContext:
    """Prepare a part for the layers.

    Args:
        config: The architecture.
        halo: Of the part.
        group: Of the ranks.
        batch_size: B.
        start_token: The part's place in the sequence.
        causal: Whether tokens see no future.
        wide_valid: Bool [B, W], False where padded, or None.
        wide_segment_ids: int64 [B, W] or None.
        num_leading: Padded tokens of the whole sequence in front of its first valid one, int64 [B],
            or None if nothing is padded.
        device: Where the part is.
        backend: Who computes it.
    """
    if config.attention == "chunk":
        if wide_valid is None or num_leading is None:
            shape = (batch_size, halo.wide_tokens)
            wide_valid = torch.ones(shape, dtype=torch.bool, device=device)
            num_leading = torch.zeros(batch_size, dtype=torch.int64, device=device)
        geometry, plan = make_aligned_plan(
            config,
            start_token - halo.left_tokens - num_leading,
            causal=causal,
            valid=wide_valid,
            segment_ids=wide_segment_ids,
            backend=backend,
        )
    else:
        geometry = make_geometry(
            config,
            halo.wide_tokens,
            causal=causal,
            valid=wide_valid,
            segment_ids=wide_segment_ids,
        )
        plan = make_plan(backend, geometry, device)
    positions = torch.arange(start_token, start_token + halo.length_tokens, device=device)
    return position_context(
        config,
        HaloAttention(plan, halo, group),
        geometry.distances(device),
        positions,
        causal=causal,
    )
