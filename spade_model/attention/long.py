"""Self-attention of the long stack: projections, positions, and a backend in between."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spade_model.attention.backends import AttentionPlan, make_plan
from spade_model.attention.chunks import leading_padding, make_aligned_plan
from spade_model.attention.geometry import make_geometry
from spade_model.attention.positions import (
    alibi_bias,
    relative_position_bucket,
    rotary_angles,
    rotate,
)
from spade_model.config import AttentionBackend, SpadeConfig


@dataclass(frozen=True)
class AttentionContext:
    """What every layer's attention needs to know of a batch; made once."""

    plan: AttentionPlan
    bias: Tensor | None
    """Of ALiBi, [H, R], the same in all layers; None where biases are learned or absent."""
    buckets: Tensor | None
    """Row of the table of learned biases for each distance, int64 [R], or None."""
    angles: Tensor | None
    """Of rotary positions, [L, D / 2], or None."""


def attention_context(
    config: SpadeConfig,
    length_tokens: int,
    *,
    causal: bool,
    valid: Tensor | None,
    segment_ids: Tensor | None,
    device: torch.device,
    backend: AttentionBackend,
) -> AttentionContext:
    """Prepare a batch; arguments as of `make_geometry` and `make_plan`."""
    if config.attention == "chunk" and valid is not None:
        geometry, plan = make_aligned_plan(
            config,
            -leading_padding(valid),
            causal=causal,
            valid=valid,
            segment_ids=segment_ids,
            backend=backend,
        )
    else:
        geometry = make_geometry(
            config, length_tokens, causal=causal, valid=valid, segment_ids=segment_ids
        )
        plan = make_plan(backend, geometry, device)
    positions = torch.arange(length_tokens, device=device)
    return position_context(config, plan, geometry.distances(device), positions, causal=causal)


def position_context(
    config: SpadeConfig,
    plan: AttentionPlan,
    distances: Tensor,
    positions: Tensor,
    *,
    causal: bool,
) -> AttentionContext:
    """Add what attention knows of distances to a plan.

    Args:
        config: The architecture.
        plan: Who sees whom.
        distances: ``key - query`` for each column of the biases that the plan takes, int64 [R].
        positions: Of the tokens, int64 [L].
        causal: Whether tokens see no future.
    """
    bias = buckets = angles = None
    if config.position == "alibi":
        bias = alibi_bias(distances, config.num_heads)
    elif config.position == "relative_bias":
        buckets = relative_position_bucket(
            distances,
            num_buckets=config.relative_attention_num_buckets,
            max_distance=config.relative_attention_max_distance_tokens,
            bidirectional=not causal,
        )
    elif config.position == "rope":
        angles = rotary_angles(positions, config.head_dim)
    return AttentionContext(plan, bias, buckets, angles)


class LongSelfAttention(nn.Module):
    """Attention of one layer, over a window, a chunk or everything.

    With learned relative biases the layer owns a table, unless one is shared: then layer 0 does.
    """

    relative_attention_bias: nn.Embedding | None

    def __init__(self, config: SpadeConfig, layer_index: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.dropout = config.dropout
        inner, bias = config.inner_dim, config.attention_bias
        self.query_key_value = nn.Linear(config.d_model, 3 * inner, bias=bias)
        self.output = nn.Linear(inner, config.d_model, bias=bias)
        owns_table = config.position == "relative_bias" and (
            layer_index == 0 or not config.shared_relative_bias
        )
        self.relative_attention_bias = (
            nn.Embedding(config.relative_attention_num_buckets, config.num_heads)
            if owns_table
            else None
        )

    def bias_by_distance(self, buckets: Tensor) -> Tensor:
        """Return the learned bias of each distance, [H, R] in float32 at least.

        Args:
            buckets: int64 [R].
        """
        assert self.relative_attention_bias is not None, "this layer's biases are another's"
        # The module is called, and not its weight read: whoever keeps weights elsewhere brings them
        # here when a module is called.
        bias: Tensor = self.relative_attention_bias(buckets)
        return bias.to(torch.promote_types(bias.dtype, torch.float32)).T

    def project(self, hidden: Tensor, angles: Tensor | None) -> Tensor:
        """Return queries, keys and values [B, T, 3, H, D], queries and keys turned by angles."""
        projected: Tensor = self.query_key_value(hidden)
        heads = projected.view(*hidden.shape[:2], 3, self.num_heads, self.head_dim)
        if angles is None:
            return heads
        query, key, value = heads.unbind(2)
        return torch.stack([rotate(query, angles), rotate(key, angles), value], dim=2)

    def forward(
        self, hidden: Tensor, context: AttentionContext, shared_bias: Tensor | None = None
    ) -> Tensor:
        """Mix each token with those it may see.

        Args:
            hidden: [B, L, d_model].
            context: Of the batch.
            shared_bias: By distance [H, R], if the table is another layer's.

        Returns:
            [B, L, d_model].
        """
        bias = context.bias
        if context.buckets is not None:
            bias = self.bias_by_distance(context.buckets) if shared_bias is None else shared_bias
        attended = context.plan.attend(
            self.project(hidden, context.angles),
            self.head_dim**-0.5,
            bias,
            self.dropout if self.training else 0.0,
        )
        output: Tensor = self.output(attended.flatten(2))
        return output
