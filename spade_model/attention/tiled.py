"""Attention for CPUs: one head at a time, in tiles that stay in the cache.

Queries, keys and values of one head are laid out in rows, the keys of overlapping blocks are read
in place, and the scores of a few blocks are made, used and dropped. The gradient makes them again,
so that nothing of the size of the scores is ever kept. The whole is one autograd function, because
what automatic differentiation would record between its steps is what costs memory and time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spade_model.attention.blocks import Blocks, block_bias, cut, forbidden_keys
from spade_model.attention.geometry import MASKED_SCORE, Geometry

_BLOCK_TOKENS = 64
_TILE_SCORES = 64 * 320 * 16
"""Scores of one tile: 1.3 MB in float32, about what a core's second-level cache holds."""


@dataclass(frozen=True)
class TiledAttention:
    """An `AttentionPlan` for one batch."""

    geometry: Geometry
    blocks: Blocks
    forbidden: Tensor
    """From `forbidden_keys`."""
    masked: list[list[bool]]
    """Which blocks of which row [B or 1][W] have any forbidden key."""

    @classmethod
    def prepare(cls, geometry: Geometry, device: torch.device) -> TiledAttention:
        """Cut a batch into blocks."""
        blocks = cut(geometry, min(_BLOCK_TOKENS, geometry.length_tokens), whole_neighbours=False)
        forbidden = forbidden_keys(geometry, blocks, device)
        return cls(geometry, blocks, forbidden, forbidden.flatten(2).any(dim=2).tolist())

    def attend(
        self, query_key_value: Tensor, scale: float, bias: Tensor | None, dropout: float
    ) -> Tensor:
        """See `AttentionPlan.attend`."""
        score_dtype = torch.promote_types(query_key_value.dtype, torch.float32)
        if bias is None:
            bias = query_key_value.new_zeros(1, self.geometry.num_distances, dtype=score_dtype)
        tile_bias = block_bias(bias.to(score_dtype), self.geometry, self.blocks)
        # The seed is drawn from torch's generator, so that runs repeat; the gradient draws the
        # same numbers again from it.
        seed = int(torch.randint(2**62, ())) if dropout > 0.0 else 0
        result: Tensor = _TiledFunction.apply(  # type: ignore[no-untyped-call]
            query_key_value, tile_bias, self, scale, dropout, seed
        )
        return result


class _Head:
    """Queries, keys and values of one head, padded to whole blocks; reused for every head."""

    def __init__(self, like: Tensor, blocks: Blocks) -> None:
        self.blocks, self.length = blocks, like.shape[1]
        self.width = like.shape[-1]
        self.query = self.queries(like)
        self.key = like.new_zeros(blocks.padded_tokens, self.width)
        self.value = torch.zeros_like(self.key)

    def queries(self, like: Tensor) -> Tensor:
        """Return zeros [W b, D] in the type of a tensor."""
        return like.new_zeros(self.blocks.num_blocks * self.blocks.block_tokens, self.width)

    def load(self, query_key_value: Tensor, row: int, head: int) -> None:
        """Lay out one head of one row."""
        inside = slice(self.blocks.left_tokens, self.blocks.left_tokens + self.length)
        self.query[: self.length] = query_key_value[row, :, 0, head]
        self.key[inside] = query_key_value[row, :, 1, head]
        self.value[inside] = query_key_value[row, :, 2, head]

    def windows(self, keys: Tensor, tile: slice) -> Tensor:
        """Return the keys of each block of a tile [G, K, D], out of keys [padded, D]."""
        blocks = self.blocks
        shape = (tile.stop - tile.start, blocks.num_keys, self.width)
        step = blocks.block_tokens * self.width
        windows = keys.as_strided(shape, (step, self.width, 1), tile.start * step)
        # Products in half precision are slow on overlapping windows, those in float32 are not.
        return windows.contiguous() if keys.itemsize < 4 else windows

    def add_windows(self, total: Tensor, first_block: int, windows: Tensor) -> None:
        """Add windows [G, K, D] to where they were taken from in ``total`` [padded, D]."""
        step = self.blocks.block_tokens
        windows = windows.to(total.dtype)
        for start in range(0, windows.shape[1], step):
            part = windows[:, start : start + step]
            # Parts of neighbouring windows that start a block apart do not overlap.
            place = total[first_block * step + start :]
            place.as_strided(part.shape, (step * self.width, self.width, 1)).add_(part)

    def inside(self, keys: Tensor) -> Tensor:
        """Return the rows of the sequence out of [padded, D]."""
        return keys[self.blocks.left_tokens : self.blocks.left_tokens + self.length]


class _Tiles:
    """The probabilities of one head, tile by tile."""

    def __init__(
        self, plan: TiledAttention, tile_bias: Tensor, scale: float, dropout: float, seed: int
    ) -> None:
        self.plan, self.tile_bias = plan, tile_bias
        self.scale, self.keep = scale, 1.0 - dropout
        blocks = plan.blocks
        self.size = max(1, _TILE_SCORES // (blocks.block_tokens * blocks.num_keys))
        self.generator = torch.Generator().manual_seed(seed) if dropout > 0.0 else None

    def __iter__(self) -> Iterator[slice]:
        for start in range(0, self.plan.blocks.num_blocks, self.size):
            yield slice(start, min(start + self.size, self.plan.blocks.num_blocks))

    def probabilities(self, query: Tensor, key: Tensor, row: int, head: int, tile: slice) -> Tensor:
        """Return the softmax of one tile [G, b, K] in float32 at least."""
        bias = self.tile_bias[head % len(self.tile_bias)]
        if query.dtype == bias.dtype:
            expanded = bias.expand(len(query), -1, -1)
            scores = torch.baddbmm(expanded, query, key.transpose(1, 2), alpha=self.scale)
        else:
            scores = torch.bmm(query, key.transpose(1, 2)).to(bias.dtype)
            torch.add(bias, scores, alpha=self.scale, out=scores)
        row %= len(self.plan.masked)
        flags = self.plan.masked[row][tile]
        if any(flags):
            # Without padding these are a block or two at an end of the sequence.
            first, last = flags.index(True), len(flags) - flags[::-1].index(True)
            forbidden = self.plan.forbidden[row, tile.start + first : tile.start + last]
            scores[first:last].masked_fill_(forbidden, MASKED_SCORE)
        return torch.softmax(scores, dim=-1)

    def drop(self, like: Tensor) -> Tensor | None:
        """Return the factors of dropout for one tile; call it once a tile, in order."""
        if self.generator is None:
            return None
        kept = torch.rand(like.shape, generator=self.generator) < self.keep
        return kept.to(like.dtype).div_(self.keep)


class _TiledFunction(torch.autograd.Function):
    """Takes [B, L, 3, H, D] and [H, b, K]; gives [B, L, H, D]."""

    @staticmethod
    def forward(
        ctx: Any,
        query_key_value: Tensor,
        tile_bias: Tensor,
        plan: TiledAttention,
        scale: float,
        dropout: float,
        seed: int,
    ) -> Tensor:
        rows, length, _, heads, width = query_key_value.shape
        step = plan.blocks.block_tokens
        output = query_key_value.new_empty(rows, length, heads, width)
        part = _Head(query_key_value, plan.blocks)
        attended = part.queries(query_key_value).view(-1, step, width)
        query = part.query.view(-1, step, width)
        tiles = _Tiles(plan, tile_bias, scale, dropout, seed)
        with torch.autocast("cpu", enabled=False):
            for row in range(rows):
                for head in range(heads):
                    part.load(query_key_value, row, head)
                    for tile in tiles:
                        key = part.windows(part.key, tile)
                        p = tiles.probabilities(query[tile], key, row, head, tile)
                        factors = tiles.drop(p)
                        if factors is not None:
                            p.mul_(factors)
                        value = part.windows(part.value, tile)
                        torch.bmm(p.to(value.dtype), value, out=attended[tile])
                    output[row, :, head] = attended.view(-1, width)[:length]
        ctx.save_for_backward(query_key_value, tile_bias)
        ctx.arguments = (plan, scale, dropout, seed)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query_key_value, tile_bias = ctx.saved_tensors
        plan, scale, dropout, seed = ctx.arguments
        rows, length, _, heads, width = query_key_value.shape
        step = plan.blocks.block_tokens
        result = torch.empty_like(query_key_value)
        bias_result = torch.zeros_like(tile_bias) if ctx.needs_input_grad[1] else None
        part = _Head(query_key_value, plan.blocks)
        query = part.query.view(-1, step, width)
        attended_gradient = part.queries(query_key_value)
        query_gradient = part.queries(query_key_value).view(-1, step, width)
        # Each key collects from several blocks: in float32, whatever the activations are.
        key_gradient = part.key.new_zeros(part.key.shape, dtype=tile_bias.dtype)
        value_gradient = torch.zeros_like(key_gradient)
        tiles = _Tiles(plan, tile_bias, scale, dropout, seed)
        with torch.autocast("cpu", enabled=False):
            for row in range(rows):
                for head in range(heads):
                    part.load(query_key_value, row, head)
                    attended_gradient[:length] = gradient[row, :, head]
                    key_gradient.zero_()
                    value_gradient.zero_()
                    for tile in tiles:
                        g = attended_gradient.view(-1, step, width)[tile]
                        key = part.windows(part.key, tile)
                        p = tiles.probabilities(query[tile], key, row, head, tile)
                        factors = tiles.drop(p)
                        dropped = p if factors is None else p * factors
                        values = torch.bmm(dropped.to(g.dtype).transpose(1, 2), g)
                        part.add_windows(value_gradient, tile.start, values)
                        value = part.windows(part.value, tile)
                        p_gradient = torch.bmm(g, value.transpose(1, 2)).to(p.dtype)
                        if factors is not None:
                            p_gradient.mul_(factors)
                        s = torch._softmax_backward_data(p_gradient, p, -1, p.dtype)
                        if bias_result is not None:
                            bias_result[head % len(bias_result)] += s.sum(dim=0)
                        s = s.to(g.dtype)
                        torch.bmm(s, key, out=query_gradient[tile])
                        keys = torch.bmm(s.transpose(1, 2), query[tile])
                        part.add_windows(key_gradient, tile.start, keys)
                    rows_of_head = query_gradient.view(-1, width)[:length]
                    torch.mul(rows_of_head, scale, out=result[row, :, 0, head])
                    torch.mul(part.inside(key_gradient), scale, out=result[row, :, 1, head])
                    result[row, :, 2, head] = part.inside(value_gradient)
        return result, bias_result, None, None, None, None
