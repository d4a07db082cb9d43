"""Attention of the decoder over an encoder's output that stays where it is.

Every rank attends to its own keys with queries that all ranks have, and the outputs are merged by
the logarithms of their sums of exponentials (the identity behind flash attention, Dao et al., arXiv
2205.14135). Scores exist for a chunk of keys at a time, and are made again for the gradient.

The merged output of every rank depends on the keys of all, so what a rank needs for its gradient is
the sum of the output gradients of all ranks; see `spade_model.context_parallel.gradients` for what
gradients mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spade_model.context_parallel.group import ContextGroup
from spade_model.state_space.two_level import outside_autocast

_CPU_SCORES = 1 << 20
"""Scores of a chunk on a CPU: four megabytes."""
_DEVICE_SCORES = 1 << 26
"""Scores of a chunk elsewhere."""


@dataclass(frozen=True)
class _Chunks:
    """A rank's keys, in pieces."""

    mask: Tensor | None
    """Bool [B, 1, 1, L] or None."""
    scale: float
    dropout: float
    seed: int

    def slices(self, query: Tensor, num_keys: int) -> Iterator[slice]:
        limit = _CPU_SCORES if query.device.type == "cpu" else _DEVICE_SCORES
        step = max(64, limit // query[..., 0].numel())
        for start in range(0, num_keys, step):
            yield slice(start, min(start + step, num_keys))

    def scores(self, query: Tensor, key: Tensor, chunk: slice, dtype: torch.dtype) -> Tensor:
        """Return masked scores [B, H, T, K]."""
        scores = _product(query * self.scale, key[:, :, chunk].mT).to(dtype)
        if self.mask is not None:
            scores = scores.masked_fill_(~self.mask[..., chunk], float("-inf"))
        return scores

    def generator(self, device: torch.device) -> torch.Generator | None:
        """Return what draws the dropout of all chunks, from the start; None without any."""
        if self.dropout == 0.0:
            return None
        return torch.Generator(device).manual_seed(self.seed)

    def factors(self, like: Tensor, generator: torch.Generator | None) -> Tensor | None:
        """Return the factors of dropout for the next chunk."""
        if generator is None:
            return None
        keep = 1.0 - self.dropout
        drawn = torch.rand(like.shape, generator=generator, device=like.device)
        return (drawn < keep).to(like.dtype).div_(keep)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return the product of [B, H, i, k] and [B, H, k, j].

    Written into a tensor that is there: selective activation checkpointing keeps what products
    return, here every score, and would keep it changed, since it is changed in place.
    """
    result = left.new_empty(*left.shape[:3], right.shape[3])
    torch.bmm(left.flatten(0, 1), right.flatten(0, 1), out=result.flatten(0, 1))
    return result


def _finite(largest: Tensor) -> Tensor:
    """Replace the -inf of rows that see nothing."""
    return largest.masked_fill(largest == float("-inf"), 0.0)


def _attend_locally(query: Tensor, key: Tensor, value: Tensor, chunks: _Chunks) -> Tensor:
    """Return outputs and, behind them, their log-sum-exp: [B, H, T, D + 1] in float32 at least."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    output = torch.zeros(*query.shape[:3], value.shape[3], dtype=dtype, device=query.device)
    total = output.new_zeros(query.shape[:3])
    largest = output.new_full(query.shape[:3], float("-inf"))
    generator = chunks.generator(query.device)
    for chunk in chunks.slices(query, key.shape[2]):
        scores = chunks.scores(query, key, chunk, dtype)
        higher = torch.maximum(largest, scores.amax(dim=-1))
        shrink = torch.exp(largest - _finite(higher))
        weights = scores.sub_(_finite(higher)[..., None]).exp_()
        total = total * shrink + weights.sum(dim=-1)
        factors = chunks.factors(weights, generator)
        if factors is not None:
            weights.mul_(factors)
        added = _product(weights.to(value.dtype), value[:, :, chunk])
        output = output * shrink[..., None] + added
        largest = higher
    output = output / total.masked_fill(total == 0, 1.0)[..., None]
    return torch.cat([output, (largest + total.log())[..., None]], dim=-1)


def _merge(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Merge what `_attend_locally` gave on each rank, in the order of the ranks.

    Returns:
        Outputs [B, H, T, D], 0 where nothing is seen, and log-sum-exp [B, H, T], there 0.
    """
    stacked = torch.stack(parts)
    outputs, logs = stacked[..., :-1], stacked[..., -1]
    largest = _finite(logs.amax(dim=0))
    shares = torch.exp(logs - largest)
    total = shares.sum(dim=0)
    total = total.masked_fill(total == 0, 1.0)
    merged = (outputs * shares[..., None]).sum(dim=0) / total[..., None]
    return merged, largest + total.log()


class _ShardedAttention(torch.autograd.Function):
    """Takes queries [B, H, T, D] and a part's keys and values [B, H, L, D]; gives [B, H, T, D]."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, group: ContextGroup, chunks: _Chunks
    ) -> Tensor:
        with outside_autocast(query):
            local = _attend_locally(query, key, value, chunks)
            merged, logs = _merge(group.gather(local, "cross_attention"))
        ctx.save_for_backward(query, key, value, merged, logs)
        ctx.facts = (group, chunks)
        return merged.to(query.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        with outside_autocast(gradient):
            query, key, value, merged, logs = ctx.saved_tensors
            group, chunks = ctx.facts
            gradients = group.gather(gradient, "cross_attention", backward=True)
            summed = torch.stack(gradients).sum(dim=0, dtype=merged.dtype)
            own = (summed * merged).sum(dim=-1, keepdim=True)
            summed = summed.to(value.dtype)
            query_gradient = torch.zeros_like(merged)
            key_gradient, value_gradient = torch.empty_like(key), torch.empty_like(value)
            generator = chunks.generator(query.device)
            for chunk in chunks.slices(query, key.shape[2]):
                weights = chunks.scores(query, key, chunk, merged.dtype)
                weights.sub_(logs[..., None]).exp_()
                factors = chunks.factors(weights, generator)
                dropped = weights if factors is None else weights * factors
                value_gradient[:, :, chunk] = dropped.to(value.dtype).mT @ summed
                products = (summed @ value[:, :, chunk].mT).to(merged.dtype)
                if factors is not None:
                    products.mul_(factors)
                scores_gradient = (weights.mul_(products.sub_(own))).to(query.dtype)
                query_gradient += scores_gradient @ key[:, :, chunk]
                key_gradient[:, :, chunk] = (scores_gradient.mT @ query).mul_(chunks.scale)
            query_gradient = query_gradient.mul_(chunks.scale).to(query.dtype)
            return query_gradient, key_gradient, value_gradient, None, None


def sharded_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    group: ContextGroup,
    *,
    scale: float,
    dropout: float,
    seed: int,
) -> Tensor:
    """Attend with the same queries on all ranks to the keys and values of all ranks.

    Args:
        query: [B, H, T, D].
        key: Of this part, [B, H, L, D].
        value: Of this part, [B, H, L, D].
        mask: Of this part, bool [B, 1, 1, L], False where padded, or None.
        group: Of the ranks.
        scale: Multiplies the products of queries and keys.
        dropout: Probability of dropping a weight.
        seed: Of the dropout of this part.

    Returns:
        [B, H, T, D], the same on all ranks to the last bit.
    """
    chunks = _Chunks(mask, scale, dropout, seed)
    result: Tensor = _ShardedAttention.apply(  # type: ignore[no-untyped-call]
        query, key, value, group, chunks
    )
    return result
