"""How what stands beside a part comes here, and how gradients of it go home."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spade_model.context_parallel.group import ContextGroup
from spade_model.context_parallel.halo import Halo


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
