"""Our caches as `transformers` knows them, and theirs as our decoder does."""

from __future__ import annotations

import copy
from typing import NoReturn

import torch
from torch import Tensor
from transformers import Cache, EncoderDecoderCache, StaticCache

from spade_model.attention.decoding import KeyValueRing, TokenWindow
from spade_model.config import SpadeConfig
from spade_model.decoding import CausalCache


class _SelfAttentionView:
    """Keys and values of decoded tokens."""

    def __init__(self, cache: EncoderDecoderCache) -> None:
        self._cache = cache

    @property
    def length_tokens(self) -> int:
        return _length_tokens(self._cache.self_attention_cache)

    def get(self, layer_index: int) -> tuple[Tensor, Tensor] | None:
        return _kept(self._cache.self_attention_cache, layer_index)

    def update(self, key: Tensor, value: Tensor, layer_index: int) -> tuple[Tensor, Tensor]:
        return _updated(self._cache.self_attention_cache, key, value, layer_index)


class _CrossAttentionView:
    """Keys and values of the encoder's output, computed at the first step."""

    def __init__(self, cache: EncoderDecoderCache) -> None:
        self._cache = cache

    @property
    def length_tokens(self) -> int:
        return _length_tokens(self._cache.cross_attention_cache)

    def get(self, layer_index: int) -> tuple[Tensor, Tensor] | None:
        if not self._cache.is_updated.get(layer_index, False):
            return None
        return _kept(self._cache.cross_attention_cache, layer_index)

    def update(self, key: Tensor, value: Tensor, layer_index: int) -> tuple[Tensor, Tensor]:
        key, value = _updated(self._cache.cross_attention_cache, key, value, layer_index)
        self._cache.is_updated[layer_index] = True
        return key, value


class GenerationCache:
    """A `DecodingCache` that keeps everything in an `EncoderDecoderCache`.

    Holds no tensors itself, so that beam search may reorder the cache behind its back. The two
    caches may grow or be of a fixed size.

    Raises:
        ValueError: The cache is of another kind.
    """

    def __init__(self, cache: Cache) -> None:
        if not isinstance(cache, EncoderDecoderCache):
            raise ValueError(
                f"past_key_values is a {type(cache).__name__}; give an EncoderDecoderCache of two "
                "DynamicCache or StaticCache objects, or leave it out"
            )
        self.self_attention = _SelfAttentionView(cache)
        self.cross_attention = _CrossAttentionView(cache)


class SpadeCacheLayer:
    """What a `SpadeCache` shows of one layer; nothing is kept here."""

    def __init__(self, window: TokenWindow, ring: KeyValueRing) -> None:
        self._window, self._ring = window, ring

    @property
    def keys(self) -> Tensor | None:
        """Of the tokens that attention still reaches, oldest first, [B, H, K, D]."""
        return self._part(0)

    @property
    def values(self) -> Tensor | None:
        """Likewise."""
        return self._part(1)

    def _part(self, part: int) -> Tensor | None:
        window, device = self._window, self._ring.device
        if device is None:
            return None
        first = max(0, window.num_tokens - window.capacity)
        kept = self._ring.read(window.places(first, window.num_tokens, device))
        return kept[:, :, part].transpose(1, 2)


class SpadeCache(Cache):
    """The memory of the causal language model as a `transformers` cache.

    It can be reordered and repeated, but not cut back: a state cannot be run backwards.
    """

    def __init__(self, config: SpadeConfig) -> None:
        # Not the base class's, which would keep layers of its own.
        # Nor the configuration: tools that take caches apart cannot put a frozen one together.
        self._empty = CausalCache(config)
        self.memory = copy.deepcopy(self._empty)

    @property
    def layers(self) -> list[SpadeCacheLayer]:
        """One for each layer; made when asked for, since tensors live in `memory` alone."""
        window = self.memory.window
        return [SpadeCacheLayer(window, layer.ring) for layer in self.memory.layers]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many tokens were taken in, padding included."""
        return self.memory.num_tokens

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return -1: there is no limit."""
        return -1

    def reset(self) -> None:
        """Forget all tokens."""
        self.memory = copy.deepcopy(self._empty)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Put rows in another order, int64 [B]."""
        self.memory.select_rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows, int64 [B']."""
        self.memory.select_rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        self.memory.select_rows(torch.arange(max(self.batch_size, 0)).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> NoReturn:
        """Refuse.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "the cache of a SPADE language model cannot forget its last tokens; generate without "
            "an assistant or prompt lookup"
        )

    @property
    def batch_size(self) -> int:
        """Rows, or -1 before the first token."""
        return self.memory.batch_size

    @property
    def is_initialized(self) -> bool:
        """Whether there are tokens."""
        return self.memory.num_tokens > 0

    @property
    def is_compileable(self) -> bool:
        """False: what is kept grows until the window is full."""
        return False

    @property
    def is_croppable(self) -> bool:
        """False."""
        return False


def _length_tokens(cache: Cache, layer_index: int = 0) -> int:
    length: int | Tensor = cache.get_seq_length(layer_index)
    # A static cache counts in a tensor. What is a symbol while exporting has to remain one.
    return int(length) if isinstance(length, Tensor) else length


def _kept(cache: Cache, layer_index: int) -> tuple[Tensor, Tensor] | None:
    if layer_index >= len(cache.layers) or cache.layers[layer_index].keys is None:
        return None
    layer = cache.layers[layer_index]
    return _filled(cache, layer.keys, layer.values, layer_index)


def _updated(cache: Cache, key: Tensor, value: Tensor, layer_index: int) -> tuple[Tensor, Tensor]:
    options = []
    if isinstance(cache, StaticCache):
        # Early 5.x has to be told the places and writes over the first ones otherwise; later
        # versions count for themselves.
        past = _length_tokens(cache, layer_index)
        places = torch.arange(past, past + key.shape[2], device=key.device)
        options = [{"cache_position": places}]
    key, value = cache.update(key, value, layer_index, *options)
    return _filled(cache, key, value, layer_index)


def _filled(cache: Cache, key: Tensor, value: Tensor, layer_index: int) -> tuple[Tensor, Tensor]:
    """Leave out the places of a static cache that hold no token yet, [B, H, T, D] each."""
    length = _length_tokens(cache, layer_index)
    return key[:, :, :length], value[:, :, :length]
