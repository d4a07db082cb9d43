"""Tokens beside a part: whose they are, and how their keys and values come here and go home.

A halo is as wide as attention reaches. Where the neighbours' parts are shorter than that, it comes
from several of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spade_model.context_parallel.group import ContextGroup


@dataclass(frozen=True)
class Halo:
    """Where the tokens go and come from; arithmetic alone."""

    left_tokens: int
    """In front of the part."""
    length_tokens: int
    """L, of the part."""
    right_tokens: int
    """Behind the part."""
    sent: tuple[tuple[int, int], ...]
    """For each rank, the tokens of this part that it needs: first and behind the last."""
    received: tuple[tuple[int, int], ...]
    """For each rank, where its tokens stand among the W: first and behind the last."""

    @property
    def wide_tokens(self) -> int:
        """W = left + L + right."""
        return self.left_tokens + self.length_tokens + self.right_tokens

    @property
    def num_sent(self) -> int:
        """Tokens sent, each as often as it is sent."""
        return sum(stop - start for start, stop in self.sent)


def make_halo(lengths_tokens: Sequence[int], rank: int, left: int, right: int) -> Halo:
    """Describe the halo of a part.

    Args:
        lengths_tokens: Of the parts of all ranks.
        rank: Whose halo.
        left: Tokens wanted in front, as far as there are any.
        right: Tokens wanted behind.
    """
    ends = list(accumulate(lengths_tokens))
    starts = [end - length for end, length in zip(ends, lengths_tokens, strict=True)]
    total, nothing = ends[-1], (0, 0)

    def wide(place: int) -> tuple[int, int]:
        return max(0, starts[place] - left), min(total, ends[place] + right)

    def overlap(owner: int, reader: int, origin: int) -> tuple[int, int]:
        low, high = wide(reader)
        first, behind = max(low, starts[owner]), min(high, ends[owner])
        return (first - origin, behind - origin) if first < behind and owner != reader else nothing

    ranks, (low, high) = range(len(ends)), wide(rank)
    return Halo(
        left_tokens=starts[rank] - low,
        length_tokens=lengths_tokens[rank],
        right_tokens=high - ends[rank],
        sent=tuple(overlap(rank, reader, starts[rank]) for reader in ranks),
        received=tuple(overlap(owner, rank, low) for owner in ranks),
    )


def _sizes(pieces: Sequence[tuple[int, int]], numbers_per_token: int) -> list[int]:
    return [(stop - start) * numbers_per_token for start, stop in pieces]


def _packed(x: Tensor, pieces: Sequence[tuple[int, int]]) -> Tensor:
    """Lay pieces of [B, L, ...] one behind the other, [numbers]."""
    return torch.cat([x[:, start:stop].reshape(-1) for start, stop in pieces])


def widened_ids(ids: Tensor, halo: Halo, group: ContextGroup) -> Tensor:
    """Put the neighbours' numbers beside those of a part, without a gradient.

    Args:
        ids: [B, L, ...].
        halo: As wide as is wanted.
        group: Of the ranks.

    Returns:
        [B, W, ...].
    """
    per_token = ids[:, :1].numel()
    sizes = _sizes(halo.sent, per_token), _sizes(halo.received, per_token)
    received = group.exchange(_packed(ids, halo.sent), *sizes, "masks")
    wide = ids.new_empty(ids.shape[0], halo.wide_tokens, *ids.shape[2:])
    wide[:, halo.left_tokens : halo.left_tokens + halo.length_tokens] = ids
    for (start, stop), piece in zip(halo.received, received.split(sizes[1]), strict=True):
        wide[:, start:stop] = piece.view(wide[:, start:stop].shape)
    return wide


class _Widen(torch.autograd.Function):
    """Takes [B, L, 3, H, D], gives [B, W, 3, H, D]: halos have keys and values, no queries."""

    @staticmethod
    def forward(ctx: Any, query_key_value: Tensor, halo: Halo, group: ContextGroup) -> Tensor:
        own = slice(halo.left_tokens, halo.left_tokens + halo.length_tokens)
        per_token = query_key_value[:, :1, 1:].numel()
        ctx.facts = (halo, group, own, per_token)
        sizes = _sizes(halo.sent, per_token), _sizes(halo.received, per_token)
        sent = _packed(query_key_value[:, :, 1:], halo.sent)
        received = group.exchange(sent, *sizes, "attention")
        shape = query_key_value.shape
        wide = query_key_value.new_empty(shape[0], halo.wide_tokens, *shape[2:])
        wide[:, : own.start, 0], wide[:, own.stop :, 0] = 0, 0
        wide[:, own] = query_key_value
        for (start, stop), piece in zip(halo.received, received.split(sizes[1]), strict=True):
            place = wide[:, start:stop, 1:]
            place.copy_(piece.view(place.shape))
        return wide

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        halo, group, own, per_token = ctx.facts
        sizes = _sizes(halo.received, per_token), _sizes(halo.sent, per_token)
        sent = _packed(gradient[:, :, 1:], halo.received)
        received = group.exchange(sent, *sizes, "attention", backward=True)
        result = gradient[:, own].clone(memory_format=torch.contiguous_format)
        for (start, stop), piece in zip(halo.sent, received.split(sizes[1]), strict=True):
            place = result[:, start:stop, 1:]
            place.add_(piece.view(place.shape))
        return result, None, None


def widened_projections(query_key_value: Tensor, halo: Halo, group: ContextGroup) -> Tensor:
    """Put the neighbours' keys and values beside those of a part, with gradients.

    Args:
        query_key_value: [B, L, 3, H, D].
        halo: As wide as attention reaches.
        group: Of the ranks.

    Returns:
        [B, W, 3, H, D]; queries of the halos are zero.
    """
    result: Tensor = _Widen.apply(query_key_value, halo, group)  # type: ignore[no-untyped-call]
    return result
