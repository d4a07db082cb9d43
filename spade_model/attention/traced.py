"""Attention over a length that is not known yet: what `torch.export` traces.

The blocks of `blocked`, but cut and joined by indices, with always a block more than the sequence
needs: nothing in the graph depends on how many there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from spade_model.attention.blocks import block_bias
from spade_model.attention.geometry import MASKED_SCORE, Geometry
from spade_model.cuts import Blocks, cut_for_products


@dataclass(frozen=True)
class TracedAttention:
    """An `AttentionPlan` for a batch whose length is a symbol; without segment ids."""

    geometry: Geometry
    blocks: Blocks
    keys: Tensor
    """Which token each key of each block is, int64 [W, K]; any where there is none."""
    forbidden: Tensor
    """Which keys of which block are no keys, bool [B or 1, 1, W, 1, K]."""

    @classmethod
    def prepare(cls, geometry: Geometry, device: torch.device) -> TracedAttention:
        """Cut a batch into blocks."""
        fixed, length = cut_for_products(geometry), geometry.length_tokens
        size, left = fixed.block_tokens, fixed.left_tokens
        blocks = Blocks(size, length // size + 2, left, fixed.right_tokens)
        first = torch.arange(blocks.num_blocks, device=device)[:, None] * size - left
        keys = first + torch.arange(blocks.num_keys, device=device)
        forbidden = ((keys < 0) | (keys >= length))[None]
        keys = keys.clamp(min=0).minimum(torch.zeros_like(keys) + (length - 1))
        if geometry.segments is not None:
            forbidden = forbidden | (geometry.segments[:, keys] < 0)
        return cls(geometry, blocks, keys, forbidden[:, None, :, None])

    def attend(
        self, query_key_value: Tensor, scale: float, bias: Tensor | None, dropout: float
    ) -> Tensor:
        """See `AttentionPlan.attend`."""
        size, left = self.blocks.block_tokens, self.blocks.left_tokens
        added = block_bias(bias, self.geometry, self.blocks, query_key_value)
        query, key, value = query_key_value.unbind(2)
        queries = self.keys[:, left : left + size]
        # [B, H, W, b or K, D]: sizes that are known come before the one that is not.
        query = (query * scale)[:, queries].permute(0, 3, 1, 2, 4)
        key, value = (x[:, self.keys].permute(0, 3, 1, 2, 4) for x in (key, value))
        scores = (query @ key.mT).to(added.dtype) + added[:, None]
        weights = torch.softmax(scores.masked_fill(self.forbidden, MASKED_SCORE), dim=-1)
        weights = functional.dropout(weights.to(value.dtype), dropout, training=dropout > 0.0)
        attended = (weights @ value).permute(0, 2, 3, 1, 4)
        token = torch.arange(query_key_value.shape[1], device=query_key_value.device)
        return attended[:, token // size, token % size]
