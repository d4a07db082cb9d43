"""Attention in whole-tensor operations: a few batched products over all blocks at once.

What an accelerator wants: no loop, no shape that depends on the data. Keys come in whole blocks, so
that the windows are made by joining neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from spade_model.attention.blocks import block_bias, forbidden_keys
from spade_model.attention.geometry import MASKED_SCORE, Geometry
from spade_model.cuts import Blocks, cut_for_products


@dataclass(frozen=True)
class BlockedAttention:
    """An `AttentionPlan` for one batch."""

    geometry: Geometry
    blocks: Blocks
    forbidden: Tensor
    """From `forbidden_keys`, with a dimension for heads: [B or 1, W, 1, b or 1, K]."""

    @classmethod
    def prepare(cls, geometry: Geometry, device: torch.device) -> BlockedAttention:
        """Cut a batch into blocks."""
        blocks = cut_for_products(geometry)
        return cls(geometry, blocks, forbidden_keys(geometry, blocks, device)[:, :, None])

    def attend(
        self, query_key_value: Tensor, scale: float, bias: Tensor | None, dropout: float
    ) -> Tensor:
        """See `AttentionPlan.attend`."""
        blocks, length = self.blocks, query_key_value.shape[1]
        bias = block_bias(bias, self.geometry, blocks, query_key_value)
        query, key, value = query_key_value.unbind(2)
        tail = blocks.num_blocks * blocks.block_tokens - length
        query = functional.pad(query * scale, (0, 0, 0, 0, 0, tail))
        query = query.view(-1, blocks.num_blocks, blocks.block_tokens, *query.shape[2:])
        query = query.transpose(2, 3)
        scores = query @ self._windows(key).transpose(-1, -2)  # [B, W, H, b, K]
        weights: Tensor = _MaskedSoftmax.apply(scores, bias, self)  # type: ignore[no-untyped-call]
        weights = functional.dropout(weights, dropout, training=dropout > 0.0)
        attended = weights @ self._windows(value)
        return attended.transpose(2, 3).flatten(1, 2)[:, :length]

    def _windows(self, x: Tensor) -> Tensor:
        """[B, L, H, D] to the keys or values of each block [B, W, H, K, D]."""
        blocks, step = self.blocks, self.blocks.block_tokens
        tail = blocks.padded_tokens - blocks.left_tokens - x.shape[1]
        padded = functional.pad(x, (0, 0, 0, 0, blocks.left_tokens, tail))
        parts = padded.view(len(x), -1, step, *x.shape[2:]).transpose(2, 3)  # [B, blocks, H, b, D]
        count = blocks.num_keys // step
        if count == 1:
            return parts
        windows = [parts[:, shift : shift + blocks.num_blocks] for shift in range(count)]
        return torch.cat(windows, dim=3)

    def mask(self, scores: Tensor) -> None:
        """Overwrite the scores of forbidden keys, [B, W, H, b, K]."""
        if self.geometry.segments is not None:
            scores.masked_fill_(self.forbidden, MASKED_SCORE)
            return
        # Only the first window, and the last two, see what is outside the sequence.
        for ends in (slice(None, 1), slice(-2, None)):
            scores[:, ends].masked_fill_(self.forbidden[:, ends], MASKED_SCORE)


class _MaskedSoftmax(torch.autograd.Function):
    """``softmax(scores + bias)`` over the allowed keys, in float32, returned as the scores' type.

    Written out because only the result has to be kept for the gradient, forbidden keys can be
    overwritten in place, and windows in the middle of a sequence need no mask at all.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, bias: Tensor, plan: BlockedAttention) -> Tensor:
        biased = scores.to(bias.dtype, copy=True).add_(bias)
        plan.mask(biased)
        weights = torch.softmax(biased, dim=-1).to(scores.dtype)
        ctx.save_for_backward(weights)
        ctx.bias_shape, ctx.bias_dtype = bias.shape, bias.dtype
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (weights,) = ctx.saved_tensors
        scores_gradient = torch._softmax_backward_data(gradient, weights, -1, weights.dtype)
        bias_gradient = None
        if ctx.needs_input_grad[1]:
            bias_gradient = scores_gradient.sum(dim=(0, 1), dtype=ctx.bias_dtype)
            bias_gradient = bias_gradient.sum_to_size(ctx.bias_shape)
        return scores_gradient, bias_gradient, None
