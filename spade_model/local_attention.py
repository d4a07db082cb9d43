"""Self-attention within a radius, in blocks: three batched products and nothing quadratic.

With radius r the sequence is cut into blocks of r + 1 queries; the keys of a block are the block
itself and its two neighbours, of which the band ``|key - query| <= r`` may be attended to. Shapes:
B rows, L tokens, H heads, D head width, b = r + 1, W = ceil(L / b) windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from spade_model.config import SpadeConfig
from spade_model.relative_position import relative_position_bucket

# Finite, so that a window without any valid key yields a meaningless but finite row. In float32
# its exponential is exactly 0 beside any real score, so masked keys have exactly no influence.
MASKED_SCORE = -1e9


@dataclass(frozen=True)
class LocalWindows:
    """What local attention needs to know of a batch's shape; made once, used by every layer."""

    block_tokens: int
    """b."""
    num_blocks: int
    """W."""
    invalid_keys: Tensor
    """True for keys outside the sequence or padded, [B or 1, W, 1, 1, 3b]."""
    padded: bool
    """Whether any window may hold invalid keys, not only the ones at the two ends."""
    buckets: Tensor
    """Row of the relative position table for ``key - query`` = 1-2b ... 2b-1, [4b - 1]."""
    in_band: Tensor
    """Whether that distance is within the radius, [4b - 1]."""


def local_windows(
    config: SpadeConfig, length_tokens: int, valid: Tensor | None, device: torch.device
) -> LocalWindows:
    """Prepare the windows of a batch.

    Args:
        config: The architecture.
        length_tokens: L.
        valid: Bool [B, L], False where padded, or None.
        device: Where the hidden states are.
    """
    block = config.local_block_tokens
    num_blocks = -(-length_tokens // block)
    if valid is None:
        valid = torch.ones(1, length_tokens, dtype=torch.bool, device=device)
        padded = False
    else:
        padded = True
    tail = num_blocks * block - length_tokens
    keys = functional.pad(valid, (block, block + tail), value=False)
    distance = torch.arange(1 - 2 * block, 2 * block, device=device)
    return LocalWindows(
        block_tokens=block,
        num_blocks=num_blocks,
        invalid_keys=~keys.unfold(1, 3 * block, block)[:, :, None, None, :],
        padded=padded,
        buckets=relative_position_bucket(
            distance,
            num_buckets=config.relative_attention_num_buckets,
            max_distance=config.relative_attention_max_distance_tokens,
        ),
        in_band=distance.abs() < block,
    )


def window_bias(table: Tensor, windows: LocalWindows) -> Tensor:
    """Return what is added to the scores of every window, [H, b, 3b] in float32 at least.

    The bias depends on ``key - query`` only, so it is one vector of 4b - 1 numbers a head, seen
    through a sliding window; distances outside the band get `MASKED_SCORE`.

    Args:
        table: [num_buckets, H].
        windows: The shape.
    """
    table = table.to(torch.promote_types(table.dtype, torch.float32))
    by_distance = functional.embedding(windows.buckets, table)  # [4b - 1, H]
    by_distance = by_distance.masked_fill(~windows.in_band[:, None], MASKED_SCORE)
    block = windows.block_tokens
    # Query i meets key j of the window at distance j - b - i, entry j + (b - 1 - i).
    return by_distance.T.unfold(1, 3 * block, 1).flip(1)


class _WindowSoftmax(torch.autograd.Function):
    """``softmax(scores + bias)`` over the valid keys, in float32, returned as the scores' type.

    Written out because only the result has to be kept for the gradient, the invalid keys can be
    overwritten in place, and the windows in the middle of a sequence need no mask at all.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, bias: Tensor, windows: LocalWindows) -> Tensor:
        biased = scores.to(bias.dtype, copy=True).add_(bias)
        invalid = windows.invalid_keys
        if windows.padded:
            biased.masked_fill_(invalid, MASKED_SCORE)
        else:
            # The second to last window also sees the filling behind the sequence.
            for ends in (slice(None, 1), slice(-2, None)):
                biased[:, ends].masked_fill_(invalid[:, ends], MASKED_SCORE)
        weights = torch.softmax(biased, dim=-1).to(scores.dtype)
        ctx.save_for_backward(weights)
        ctx.bias_dtype = bias.dtype
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (weights,) = ctx.saved_tensors
        scores_gradient = torch._softmax_backward_data(gradient, weights, -1, weights.dtype)
        bias_gradient = None
        if ctx.needs_input_grad[1]:
            bias_gradient = scores_gradient.sum(dim=(0, 1), dtype=ctx.bias_dtype)
        return scores_gradient, bias_gradient, None


def _key_windows(x: Tensor, windows: LocalWindows) -> Tensor:
    """[B, W b, H, D] to the keys or values of each window [B, W, H, 3b, D]."""
    block = windows.block_tokens
    padded = functional.pad(x, (0, 0, 0, 0, block, block))
    blocks = padded.view(x.shape[0], windows.num_blocks + 2, block, *x.shape[2:]).transpose(2, 3)
    return torch.cat([blocks[:, :-2], blocks[:, 1:-1], blocks[:, 2:]], dim=3)


def local_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    windows: LocalWindows,
    dropout: float = 0.0,
) -> Tensor:
    """Attend within the band.

    Args:
        query: Already scaled, [B, L, H, D].
        key: [B, L, H, D].
        value: [B, L, H, D].
        bias: [H, b, 3b], see `window_bias`.
        windows: The shape and the mask.
        dropout: Probability of dropping an attention weight.

    Returns:
        [B, L, H, D]. Rows of padded queries are finite and without meaning.
    """
    length = query.shape[1]
    block, num_blocks = windows.block_tokens, windows.num_blocks
    tail = num_blocks * block - length
    if tail:
        query, key, value = (functional.pad(x, (0, 0, 0, 0, 0, tail)) for x in (query, key, value))
    query_blocks = query.reshape(query.shape[0], num_blocks, block, *query.shape[2:])
    query_blocks = query_blocks.transpose(2, 3)  # [B, W, H, b, D]
    scores = query_blocks @ _key_windows(key, windows).transpose(-1, -2)  # [B, W, H, b, 3b]
    weights: Tensor = _WindowSoftmax.apply(scores, bias, windows)  # type: ignore[no-untyped-call]
    weights = functional.dropout(weights, dropout, training=dropout > 0.0)
    attended = weights @ _key_windows(value, windows)
    return attended.transpose(2, 3).flatten(1, 2)[:, :length]


class LocalSelfAttention(nn.Module):
    """Local self-attention with its own table of relative position biases, no linear biases."""

    def __init__(self, config: SpadeConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.dropout = config.dropout
        self.query_key_value = nn.Linear(config.d_model, 3 * config.inner_dim, bias=False)
        self.output = nn.Linear(config.inner_dim, config.d_model, bias=False)
        self.relative_attention_bias = nn.Embedding(
            config.relative_attention_num_buckets, config.num_heads
        )

    def forward(self, hidden: Tensor, windows: LocalWindows) -> Tensor:
        """Mix each token with its neighbours, [B, L, d_model] to the same."""
        projected: Tensor = self.query_key_value(hidden)
        heads = projected.view(*hidden.shape[:2], 3, self.num_heads, self.head_dim)
        query, key, value = heads.unbind(2)
        attended = local_attention(
            query * self.head_dim**-0.5,
            key,
            value,
            window_bias(self.relative_attention_bias.weight, windows),
            windows,
            self.dropout if self.training else 0.0,
        )
        output: Tensor = self.output(attended.flatten(2))
        return output
