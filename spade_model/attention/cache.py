"""Keys and values of tokens already decoded: the protocol the decoder uses, and our own cache.

The decoder only calls these methods, so that a cache of another library can stand in by a thin
wrapper.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class KeyValueCache(Protocol):
    """Keys and values of every layer, each [B, H, T, D]."""

    @property
    def length_tokens(self) -> int:
        """T, the same for all layers between two steps."""

    def get(self, layer_index: int) -> tuple[Tensor, Tensor] | None:
        """Return what is kept for a layer, or None."""

    def update(self, key: Tensor, value: Tensor, layer_index: int) -> tuple[Tensor, Tensor]:
        """Append along the length and return all keys and values of the layer."""


class DecodingCache(Protocol):
    """What `SpadeForSeq2Seq.decode` accepts as its cache."""

    @property
    def self_attention(self) -> KeyValueCache:
        """Grows by the decoded tokens."""

    @property
    def cross_attention(self) -> KeyValueCache:
        """Filled once from the encoder's output."""


class GrowingKeyValueCache:
    """A `KeyValueCache` that concatenates."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def length_tokens(self) -> int:
        """T of the first layer; the layers differ only in the middle of a step."""
        return self._layers[0][0].shape[2] if 0 in self._layers else 0

    def get(self, layer_index: int) -> tuple[Tensor, Tensor] | None:
        """Return what is kept for a layer, or None."""
        return self._layers.get(layer_index)

    def update(self, key: Tensor, value: Tensor, layer_index: int) -> tuple[Tensor, Tensor]:
        """Append along the length and return all keys and values of the layer."""
        kept = self.get(layer_index)
        if kept is not None:
            key = torch.cat([kept[0], key], dim=2)
            value = torch.cat([kept[1], value], dim=2)
        self._layers[layer_index] = (key, value)
        return key, value


class DecoderCache:
    """Our own `DecodingCache`."""

    def __init__(self) -> None:
        self.self_attention = GrowingKeyValueCache()
        self.cross_attention = GrowingKeyValueCache()
