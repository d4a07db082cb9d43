"""Attention of the long stack that leaves its weights behind: the definition, which is quadratic.

The other ways to compute attention never have all weights at the same time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from spade_model.attention.backends import AttentionPlan
from spade_model.attention.chunks import AlignedChunks
from spade_model.attention.decoding import ContinuedAttention, StepAttention
from spade_model.attention.long import AttentionContext
from spade_model.attention.reference import ReferenceAttention


def observed_context(
    context: AttentionContext, num_tokens: int, weights: list[Tensor]
) -> AttentionContext:
    """Return a context whose plan appends its weights to a list, once a layer.

    Args:
        context: Of the ``reference`` backend.
        num_tokens: Tokens there are with those of this call, N.
        weights: Receives [B, H, L, N] of L new tokens in order, 0 for what a token does not see.
    """
    plan = observed_plan(context.plan, num_tokens, weights.append)
    return dataclasses.replace(context, plan=plan)


def observed_plan(
    plan: AttentionPlan, num_tokens: int, record: Callable[[Tensor], None]
) -> AttentionPlan:
    """Return the plan with somebody who is given its weights, [B, H, L, N]."""
    if isinstance(plan, ReferenceAttention):
        return dataclasses.replace(plan, record=record)
    if isinstance(plan, AlignedChunks):
        places = plan.places

        def unmoved(weights: Tensor) -> None:
            heads = weights.shape[1]
            rows = places[:, None, :, None].expand(-1, heads, -1, weights.shape[3])
            columns = places[:, None, None, :].expand(-1, heads, places.shape[1], -1)
            record(weights.gather(2, rows).gather(3, columns))

        return dataclasses.replace(plan, plan=observed_plan(plan.plan, num_tokens, unmoved))
    if isinstance(plan, ContinuedAttention):
        inner, num_past = plan.plan, len(plan.past)

        def of_new_tokens(weights: Tensor) -> None:
            record(functional.pad(weights[:, :, num_past:], (num_tokens - weights.shape[3], 0)))

        # Without a past the weights stand as they are used, and gradients can be asked of them.
        receiver = of_new_tokens if num_past else record
        return dataclasses.replace(plan, plan=observed_plan(inner, num_tokens, receiver))
    assert isinstance(plan, StepAttention), "no other plan belongs to the reference"
    last = num_tokens - 1

    def by_token(weights: Tensor) -> None:
        # A ring: what stands in place p is the last token whose number leaves the remainder p.
        places = torch.arange(weights.shape[3], device=weights.device)
        tokens = last - (last - places).remainder(plan.capacity)
        empty = weights.new_zeros(*weights.shape[:3], num_tokens)
        record(empty.index_copy(3, tokens, weights))

    return dataclasses.replace(plan, record=by_token)
