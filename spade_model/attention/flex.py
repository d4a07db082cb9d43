"""Attention through torch's flex_attention: fused kernels on GPUs, compiled for the pattern.

On a CPU torch 2.13 has no backward pass for it, so there it serves inference only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from spade_model.attention.geometry import Geometry


@functools.cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention)


@dataclass(frozen=True)
class FlexAttention:
    """An `AttentionPlan` for one batch."""

    geometry: Geometry
    block_mask: BlockMask

    @classmethod
    def prepare(cls, geometry: Geometry, device: torch.device) -> FlexAttention:
        """Find out which blocks of scores are needed at all."""
        left, right, chunk = geometry.left_tokens, geometry.right_tokens, geometry.chunk_tokens
        segments = geometry.segments
        per_query = geometry.segmented

        def allowed(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            distance = key - query
            visible = (distance >= -left) & (distance <= right)
            if chunk is not None:
                visible = visible & (key // chunk == query // chunk)
            if segments is not None:
                visible = visible & (segments[row, key] >= 0)
                if per_query:
                    visible = visible & (segments[row, key] == segments[row, query])
            # Without a key a row would be undefined: padded queries see themselves.
            return visible | (key == query)

        rows = None if segments is None else segments.shape[0]
        length = geometry.length_tokens
        return cls(
            geometry, create_block_mask(allowed, rows, None, length, length, device=str(device))
        )

    def attend(
        self, query_key_value: Tensor, scale: float, bias: Tensor | None, dropout: float
    ) -> Tensor:
        """See `AttentionPlan.attend`.

        Raises:
            ValueError: Dropout is asked for, which flex_attention does not have, or a gradient on
                a CPU.
        """
        if dropout > 0.0:
            raise ValueError(
                f"dropout={dropout} is not possible with the attention backend 'flex'; set "
                "dropout to 0.0 or use the backend 'blocked'"
            )
        on_gpu = query_key_value.is_cuda
        if not on_gpu and torch.is_grad_enabled() and query_key_value.requires_grad:
            raise ValueError(
                "the attention backend 'flex' has no gradient on a CPU; use 'auto' there"
            )
        query, key, value = (x.transpose(1, 2) for x in query_key_value.unbind(2))
        left, last = self.geometry.left_tokens, self.geometry.num_distances - 1
        add_bias = None
        if bias is not None:
            by_distance = bias

            def add_bias(
                score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor
            ) -> Tensor:
                index = (key - query + left).clamp(0, last)
                return score + by_distance[head, index]

        attend = _compiled() if on_gpu else cast(Callable[..., Any], flex_attention)
        attended: Tensor = attend(
            query, key, value, score_mod=add_bias, block_mask=self.block_mask, scale=scale
        )
        return attended.transpose(1, 2)
