"""Attention while decoding: a ring of the last keys and values, and how new tokens see it.

Token n of every row stands in place ``n % W``, W the places of the ring: one more than the radius
for windows and chunks, growing for full attention. Padding counts as tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from spade_model.attention.backends import AttentionPlan, make_plan
from spade_model.attention.chunks import leading_padding, make_aligned_plan
from spade_model.attention.geometry import MASKED_SCORE, make_geometry
from spade_model.attention.long import AttentionContext, position_context
from spade_model.config import AttentionBackend, SpadeConfig

_SMALLEST_GROWTH_TOKENS = 64


class KeyValueRing:
    """Keys and values of one layer, each [B, H, W, D]. No gradient passes through them."""

    def __init__(self) -> None:
        self._kept: tuple[Tensor, ...] = ()

    @torch.no_grad()
    def store(self, key_value: Tensor, places: Tensor, capacity: int) -> tuple[Tensor, ...]:
        """Write tokens into their places and return all keys and values.

        Args:
            key_value: [B, T, 2, H, D].
            places: int64 [T], each once.
            capacity: W; if it has grown, what there is keeps its places.
        """
        parts = key_value.permute(2, 0, 3, 1, 4)  # [2, B, H, T, D]
        if not self._kept or self._kept[0].shape[2] != capacity:
            batch, heads, _, width = parts[0].shape
            grown = [parts.new_zeros(batch, heads, capacity, width) for _ in parts]
            for new, old in zip(grown, self._kept, strict=False):  # There may be none yet.
                new[:, :, : old.shape[2]] = old
            self._kept = tuple(grown)
        for kept, part in zip(self._kept, parts, strict=True):
            kept.index_copy_(2, places, part.to(kept.dtype))
        return self._kept

    def read(self, places: Tensor) -> Tensor:
        """Return keys and values of some places as [B, P, 2, H, D]."""
        return torch.stack([x.index_select(2, places).transpose(1, 2) for x in self._kept], dim=2)

    def select_rows(self, rows: Tensor) -> None:
        """Keep these rows of the batch, int64 [B']."""
        self._kept = tuple(x.index_select(0, rows) for x in self._kept)

    @property
    def batch_size(self) -> int:
        """B, or -1 before the first token."""
        return self._kept[0].shape[0] if self._kept else -1

    @property
    def device(self) -> torch.device | None:
        """Where the ring is, None before the first token."""
        return self._kept[0].device if self._kept else None

    @property
    def num_bytes(self) -> int:
        """Memory of the ring."""
        return sum(x.untyped_storage().nbytes() for x in self._kept)


class TokenWindow:
    """Which tokens the rings hold, the same in all layers."""

    def __init__(self, config: SpadeConfig) -> None:
        self.grows = config.attention == "full"
        self.capacity = 0 if self.grows else config.local_radius_tokens + 1
        self.num_tokens = 0
        self.valid: Tensor | None = None
        """Bool [B, W], False where padded; None while no mask was given."""
        self.num_leading: Tensor | None = None
        """Padded tokens in front of each row's first valid one, int64 [B], or None as well."""

    def append(self, length: int, valid: Tensor | None, device: torch.device) -> None:
        """Take in tokens.

        Args:
            length: T.
            valid: Bool [B, T], False where padded, or None.
            device: Where the masks are kept.
        """
        before, self.num_tokens = self.num_tokens, self.num_tokens + length
        if self.grows and self.num_tokens > self.capacity:
            least = max(self.capacity + self.capacity // 2, _SMALLEST_GROWTH_TOKENS)
            self.capacity = max(self.num_tokens, least)
        if valid is None and self.valid is None:
            return
        if valid is None:
            assert self.valid is not None
            valid = torch.ones(self.valid.shape[0], length, dtype=torch.bool, device=device)
        if self.valid is None or self.num_leading is None:
            self.valid = valid.new_ones(valid.shape[0], self.capacity)
            self.num_leading = torch.zeros(valid.shape[0], dtype=torch.int64, device=device)
        waiting = self.num_leading == before
        self.num_leading = self.num_leading + leading_padding(valid) * waiting
        missing = self.capacity - self.valid.shape[1]
        places = self.places(self.num_tokens - min(length, self.capacity), self.num_tokens, device)
        self.valid = functional.pad(self.valid, (0, missing)).index_copy(
            1, places, valid[:, -len(places) :]
        )

    def places(self, start: int, end: int, device: torch.device) -> Tensor:
        """Return the places of tokens start to end - 1, int64."""
        return torch.arange(start, end, device=device) % self.capacity

    def select_rows(self, rows: Tensor) -> None:
        """Keep these rows of the batch, int64 [B']."""
        if self.valid is not None and self.num_leading is not None:
            self.valid = self.valid.index_select(0, rows)
            self.num_leading = self.num_leading.index_select(0, rows)


@dataclass(frozen=True)
class StepAttention:
    """An `AttentionPlan` for one new token, in one layer. Biases are by place, [H, K]."""

    ring: KeyValueRing
    capacity: int
    place: Tensor
    """Of the new token, int64 [1]."""
    num_places: int
    """K, the places that hold a token."""
    forbidden: Tensor | None
    """Bool [B or 1, 1, 1, K]: padded, or of another chunk; or None."""
    record: Callable[[Tensor], None] | None = None
    """Is given the weights [B, H, 1, K]."""

    def attend(
        self, query_key_value: Tensor, scale: float, bias: Tensor | None, dropout: float
    ) -> Tensor:
        """See `AttentionPlan.attend`; L = 1."""
        key, value = self.ring.store(query_key_value[:, :, 1:], self.place, self.capacity)
        key, value = key[:, :, : self.num_places], value[:, :, : self.num_places]
        query = query_key_value[:, :, 0].transpose(1, 2).to(key.dtype) * scale
        scores = (query @ key.mT).to(torch.promote_types(query.dtype, torch.float32))
        if bias is not None:
            scores = scores + bias[:, None]
        if self.forbidden is not None:
            scores = scores.masked_fill(self.forbidden, MASKED_SCORE)
        weights = torch.softmax(scores, dim=-1).to(value.dtype)
        if self.record is not None:
            self.record(weights)
        weights = functional.dropout(weights, dropout, training=dropout > 0.0)
        return (weights @ value).transpose(1, 2).to(query_key_value.dtype)


@dataclass(frozen=True)
class ContinuedAttention:
    """An `AttentionPlan` for T new tokens behind those of the ring, in one layer.

    Any plan for whole sequences will do: the tokens before go in front as keys without queries.
    """

    ring: KeyValueRing
    capacity: int
    past: Tensor
    """Places of the P tokens before that are in reach, oldest first, int64 [P]."""
    new: Tensor
    """Places of the last new tokens, at most W, int64."""
    plan: AttentionPlan
    """For P + T tokens."""

    def attend(
        self, query_key_value: Tensor, scale: float, bias: Tensor | None, dropout: float
    ) -> Tensor:
        """See `AttentionPlan.attend`."""
        everything = query_key_value
        if len(self.past):
            before = self.ring.read(self.past).to(query_key_value.dtype)
            before = functional.pad(before, (0, 0, 0, 0, 1, 0))  # Queries of zero.
            everything = torch.cat([before, query_key_value], dim=1)
        attended = self.plan.attend(everything, scale, bias, dropout)
        self.ring.store(query_key_value[:, -len(self.new) :, 1:], self.new, self.capacity)
        return attended[:, len(self.past) :]


def continued_attention(
    config: SpadeConfig,
    window: TokenWindow,
    rings: list[KeyValueRing],
    length: int,
    *,
    valid: Tensor | None,
    device: torch.device,
    backend: AttentionBackend,
) -> list[AttentionContext]:
    """Append tokens to the window, and prepare their attention for each layer.

    One token costs one row of scores. Gradients are the reason to take the longer way for one
    token as well: they cannot pass through the ring.

    Args:
        config: The architecture of a causal stack.
        window: What the rings hold; changed.
        rings: Of the layers, written when a layer attends.
        length: T, the new tokens.
        valid: Bool [B, T] of the new tokens, or None.
        device: Where they are.
        backend: Who computes the attention of several tokens.
    """
    if length == 1 and not torch.is_grad_enabled():
        window.append(length, valid, device)
        return _step(config, window, rings, device)
    return _continuation(config, window, rings, length, valid, device, backend)


def _step(
    config: SpadeConfig, window: TokenWindow, rings: list[KeyValueRing], device: torch.device
) -> list[AttentionContext]:
    last = window.num_tokens - 1
    num_places = min(window.num_tokens, window.capacity)
    age = (last - torch.arange(num_places, device=device)) % window.capacity
    forbidden = None if window.valid is None else ~window.valid[:, :num_places]
    if config.attention == "chunk":
        position: Tensor = torch.tensor([last], device=device)
        if window.num_leading is not None:
            position = position - window.num_leading
        earlier = age > position.remainder(window.capacity)[:, None]
        forbidden = earlier if forbidden is None else forbidden | earlier
    if forbidden is not None:
        forbidden = forbidden[:, None, None]
    place, token = window.places(last, last + 1, device), torch.tensor([last], device=device)
    first = StepAttention(rings[0], window.capacity, place, num_places, forbidden)
    context = position_context(config, first, -age, token, causal=True)
    return [
        _with_plan(context, StepAttention(ring, window.capacity, place, num_places, forbidden))
        for ring in rings
    ]


def _continuation(
    config: SpadeConfig,
    window: TokenWindow,
    rings: list[KeyValueRing],
    length: int,
    valid: Tensor | None,
    device: torch.device,
    backend: AttentionBackend,
) -> list[AttentionContext]:
    start, chunked = window.num_tokens, config.attention == "chunk"
    masked = valid is not None or window.valid is not None
    reach = start if window.grows else config.local_radius_tokens
    num_past = min(start, reach)
    if chunked and not masked:
        num_past = start % window.capacity  # What the current chunk has already.
    # Read before the new tokens overwrite the places of the oldest.
    all_valid = _joined_mask(window, num_past, length, valid, device) if masked else None
    window.append(length, valid, device)
    past = window.places(start - num_past, start, device)
    new = window.places(start + max(0, length - window.capacity), start + length, device)
    if chunked and all_valid is not None and window.num_leading is not None:
        positions = start - num_past - window.num_leading
        geometry, plan = make_aligned_plan(
            config, positions, causal=True, valid=all_valid, segment_ids=None, backend=backend
        )
    else:
        geometry = make_geometry(config, num_past + length, causal=True, valid=all_valid)
        plan = make_plan(backend, geometry, device)
    tokens = torch.arange(start, start + length, device=device)
    context = position_context(config, plan, geometry.distances(device), tokens, causal=True)
    return [
        _with_plan(context, ContinuedAttention(ring, window.capacity, past, new, plan))
        for ring in rings
    ]


def _joined_mask(
    window: TokenWindow, num_past: int, length: int, valid: Tensor | None, device: torch.device
) -> Tensor:
    """Return the mask of the tokens in reach and the new ones, bool [B, P + T]."""
    start = window.num_tokens
    known = valid if valid is not None else window.valid
    assert known is not None, "there is a mask"
    past, new = (known.new_ones(known.shape[0], count) for count in (num_past, length))
    if window.valid is not None:
        past = window.valid[:, window.places(start - num_past, start, device)]
    return torch.cat([past, new if valid is None else valid], dim=1)


def _with_plan(context: AttentionContext, plan: AttentionPlan) -> AttentionContext:
    return AttentionContext(plan, context.bias, context.buckets, context.angles)
