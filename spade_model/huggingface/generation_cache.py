"""Our caches as `transformers` knows them, and theirs as our decoder does."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor
from transformers import Cache, EncoderDecoderCache

from spade_model.config import SpadeConfig
from spade_model.decoding import CausalCache


class _SelfAttentionView:
    """Keys and values of decoded tokens."""

    def __init__(self, cache: EncoderDecoderCache) -> None:
        self._cache = cache

    @property
    def length_tokens(self) -> int:
        return int(self._cache.get_seq_length())

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
        return int(self._cache.cross_attention_cache.get_seq_length())

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


class SpadeCache(Cache):
    """The memory of the causal language model as a `transformers` cache.

    It can be reordered and repeated, but not cut back: a state cannot be run backwards.
    """

    def __init__(self, config: SpadeConfig) -> None:
        super().__init__(layers=[])  # Tensors live in our own cache.
        self._config = config
        self.memory = CausalCache(config)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many tokens were taken in, padding included."""
        return self.memory.num_tokens

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return -1: there is no limit."""
        return -1

    def reset(self) -> None:
        """Forget all tokens."""
        self.memory = CausalCache(self._config)

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


def _kept(cache: Cache, layer_index: int) -> tuple[Tensor, Tensor] | None:
    if layer_index >= len(cache.layers) or cache.layers[layer_index].keys is None:
        return None
    layer = cache.layers[layer_index]
    return _filled(cache, layer.keys, layer.values, layer_index)


def _updated(cache: Cache, key: Tensor, value: Tensor, layer_index: int) -> tuple[Tensor, Tensor]:
    key, value = cache.update(key, value, layer_index)
    return _filled(cache, key, value, layer_index)


def _filled(cache: Cache, key: Tensor, value: Tensor, layer_index: int) -> tuple[Tensor, Tensor]:
    """Leave out the places of a static cache that hold no token yet, [B, H, T, D] each."""
    length = int(cache.get_seq_length(layer_index))
    return key[:, :, :length], value[:, :, :length]
