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

from spade_model.attention.blocks import block_bias, forbidden_keys
from spade_model.attention.geometry import MASKED_SCORE, Geometry
from spade_model.cuts import Blocks, cut_for_tiles

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
        blocks = cut_for_tiles(geometry)
        forbidden = forbidden_keys(geometry, blocks, device)
        return cls(geometry, blocks, forbidden, forbidden.flatten(2).any(dim=2).tolist())

    def attend(
        self, query_key_value: Tensor, scale: float, bias: Tensor | None, dropout: float
    ) -> Tensor:
        """See `AttentionPlan.attend`."""
        tile_bias = block_bias(bias, self.geometry, self.blocks, query_key_value)
        # The seed is drawn from torch's generator, so that runs repeat; the gradient draws the
        # same numbers again from it.
        seed = int(torch.randint(2**62, ())) if dropout > 0.0 else 0
        result: Tensor = _TiledFunction.apply(  # type: ignore[no-untyped-call]
            query_key_value, tile_bias, self, scale, dropout, seed
        )
        return result


class _Scratch:
    """Tensors of a tile's size, made once and used for every tile.

    Megabytes that are allocated and released again and again cost a page fault for every four
    kilobytes, as much time as the products themselves.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return what was left in the tensor of a name, or zeros; the first one is the largest."""
        if name not in self._kept:
            self._kept[name] = torch.zeros(shape, dtype=dtype)
        return self._kept[name][: shape[0]]

    def cast(self, name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return x in a type: itself, or a copy in a tensor of that name."""
        return x if x.dtype == dtype else self.take(name, x.shape, dtype).copy_(x)

    def product(self, name: str, left: Tensor, right: Tensor) -> Tensor:
        """Return the batched product."""
        shape = (len(left), left.shape[1], right.shape[2])
        return torch.bmm(left, right, out=self.take(name, shape, left.dtype))


class _Head:
    """Queries, keys and values of one head, padded to whole blocks; reused for every head."""

    def __init__(self, like: Tensor, blocks: Blocks, scratch: _Scratch) -> None:
        self.blocks, self.length, self.scratch = blocks, like.shape[1], scratch
        self.width = like.shape[-1]
        self.query = self.queries(like)
        self.key = like.new_zeros(blocks.padded_tokens, self.width)
        self.value = torch.zeros_like(self.key)

    def queries(self, like: Tensor) -> Tensor:
        """Return zeros [W b, D] in the type of a tensor."""
        return like.new_zeros(self.blocks.num_blocks * self.blocks.block_tokens, self.width)

    def by_block(self, queries: Tensor) -> Tensor:
        """View queries [W b, D] as [W, b, D]."""
        return queries.view(-1, self.blocks.block_tokens, self.width)

    def load(self, query_key_value: Tensor, row: int, head: int) -> None:
        """Lay out one head of one row."""
        self.query[: self.length] = query_key_value[row, :, 0, head]
        self.inside(self.key).copy_(query_key_value[row, :, 1, head])
        self.inside(self.value).copy_(query_key_value[row, :, 2, head])

    def windows(self, name: str, keys: Tensor, tile: slice) -> Tensor:
        """Return the keys of each block of a tile [G, K, D], out of keys [padded, D]."""
        blocks = self.blocks
        shape = (tile.stop - tile.start, blocks.num_keys, self.width)
        step = blocks.block_tokens * self.width
        windows = keys.as_strided(shape, (step, self.width, 1), tile.start * step)
        if keys.itemsize >= 4:
            return windows
        # Products in half precision are slow on overlapping windows.
        return self.scratch.take(name, shape, keys.dtype).copy_(windows)

    def add_product(self, total: Tensor, tile: slice, left: Tensor, right: Tensor) -> None:
        """Add the product of two batches to where its windows belong in ``total`` [padded, D].

        Window w holds pieces w to w + n - 1 of b rows. With n - 1 empty windows on either side, the
        contributions to one piece stand equally far apart in memory, and are summed in place.

        Args:
            total: What each key collects.
            tile: The blocks.
            left: [G, K, b].
            right: [G, b, D].
        """
        blocks, step = self.blocks, self.blocks.block_tokens
        count, pieces = tile.stop - tile.start, blocks.num_keys // step
        empty, window, piece = pieces - 1, blocks.num_keys * self.width, step * self.width
        shape = (count + 2 * empty, blocks.num_keys, self.width)
        windows = self.scratch.take("windows", shape, left.dtype)
        # The windows in front stay empty; behind a shorter tile stands what a longer one left.
        windows[empty + count :].zero_()
        torch.bmm(left, right, out=windows[empty : empty + count])
        shape = (count + empty, pieces, piece)
        parts = windows.as_strided(shape, (window, window - piece, 1), empty * piece)
        place = total[tile.start * step : (tile.stop + empty) * step]
        place.view(len(parts), piece).add_(parts.sum(dim=1, dtype=total.dtype))

    def inside(self, keys: Tensor) -> Tensor:
        """Return the rows of the sequence out of [padded, D]."""
        return keys[self.blocks.left_tokens : self.blocks.left_tokens + self.length]


class _Tiles:
    """The probabilities of one head, tile by tile."""

    def __init__(
        self,
        plan: TiledAttention,
        tile_bias: Tensor,
        scale: float,
        dropout: float,
        seed: int,
        scratch: _Scratch,
    ) -> None:
        self.plan, self.tile_bias, self.scratch = plan, tile_bias, scratch
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
        shape = (len(query), *bias.shape)
        scores = self.scratch.take("scores", shape, bias.dtype)
        if query.dtype == bias.dtype:
            torch.baddbmm(
                bias.expand(shape), query, key.transpose(1, 2), alpha=self.scale, out=scores
            )
        else:
            scores.copy_(self.scratch.product("rounded", query, key.transpose(1, 2)))
            torch.add(bias, scores, alpha=self.scale, out=scores)
        row %= len(self.plan.masked)
        flags = self.plan.masked[row][tile]
        if any(flags):
            # Without padding these are a block or two at an end of the sequence.
            first, last = flags.index(True), len(flags) - flags[::-1].index(True)
            forbidden = self.plan.forbidden[row, tile.start + first : tile.start + last]
            scores[first:last].masked_fill_(forbidden, MASKED_SCORE)
        weights = self.scratch.take("weights", shape, bias.dtype)
        return torch.softmax(scores, dim=-1, out=weights)

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
        dtype, scratch = query_key_value.dtype, _Scratch()
        output = query_key_value.new_empty(rows, length, heads, width)
        part = _Head(query_key_value, plan.blocks, scratch)
        attended, query = part.queries(query_key_value), part.by_block(part.query)
        tiles = _Tiles(plan, tile_bias, scale, dropout, seed, scratch)
        with torch.autocast("cpu", enabled=False):
            for row in range(rows):
                for head in range(heads):
                    part.load(query_key_value, row, head)
                    for tile in tiles:
                        key = part.windows("keys", part.key, tile)
                        p = tiles.probabilities(query[tile], key, row, head, tile)
                        factors = tiles.drop(p)
                        if factors is not None:
                            p.mul_(factors)
                        value = part.windows("values", part.value, tile)
                        p = scratch.cast("rounded", p, dtype)
                        torch.bmm(p, value, out=part.by_block(attended)[tile])
                    output[row, :, head] = attended[:length]
        ctx.save_for_backward(query_key_value, tile_bias)
        ctx.arguments = (plan, scale, dropout, seed)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query_key_value, tile_bias = ctx.saved_tensors
        plan, scale, dropout, seed = ctx.arguments
        rows, length, _, heads, _ = query_key_value.shape
        dtype, scratch = query_key_value.dtype, _Scratch()
        result = torch.empty_like(query_key_value)
        bias_result = torch.zeros_like(tile_bias) if ctx.needs_input_grad[1] else None
        part = _Head(query_key_value, plan.blocks, scratch)
        query = part.by_block(part.query)
        attended_gradient, query_gradient = (part.queries(query_key_value) for _ in range(2))
        # Each key collects from several blocks: in float32, whatever the activations are.
        key_gradient = part.key.new_zeros(part.key.shape, dtype=tile_bias.dtype)
        value_gradient = torch.zeros_like(key_gradient)
        tiles = _Tiles(plan, tile_bias, scale, dropout, seed, scratch)
        with torch.autocast("cpu", enabled=False):
            for row in range(rows):
                for head in range(heads):
                    part.load(query_key_value, row, head)
                    attended_gradient[:length] = gradient[row, :, head]
                    key_gradient.zero_()
                    value_gradient.zero_()
                    for tile in tiles:
                        g = part.by_block(attended_gradient)[tile]
                        key = part.windows("keys", part.key, tile)
                        p = tiles.probabilities(query[tile], key, row, head, tile)
                        factors = tiles.drop(p)
                        dropped = p if factors is None else p * factors
                        dropped = scratch.cast("rounded", dropped, dtype)
                        part.add_product(value_gradient, tile, dropped.transpose(1, 2), g)
                        value = part.windows("values", part.value, tile)
                        weight_gradient = scratch.product("products", g, value.transpose(1, 2))
                        weight_gradient = scratch.cast("scores", weight_gradient, p.dtype)
                        if factors is not None:
                            weight_gradient.mul_(factors)
                        s = scratch.take("score gradient", p.shape, p.dtype)
                        torch._softmax_backward_data(weight_gradient, p, -1, p.dtype, grad_input=s)
                        if bias_result is not None:
                            bias_result[head % len(bias_result)] += s.sum(dim=0)
                        s = scratch.cast("rounded", s, dtype)
                        torch.bmm(s, key, out=part.by_block(query_gradient)[tile])
                        part.add_product(key_gradient, tile, s.transpose(1, 2), query[tile])
                    torch.mul(query_gradient[:length], scale, out=result[row, :, 0, head])
                    torch.mul(part.inside(key_gradient), scale, out=result[row, :, 1, head])
                    result[row, :, 2, head] = part.inside(value_gradient)
        return result, bias_result, None, None, None, None
