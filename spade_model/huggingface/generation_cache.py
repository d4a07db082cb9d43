"""The caches of `transformers` behind the protocol of `spade_model.cache`."""

from __future__ import annotations

from torch import Tensor
from transformers import Cache, EncoderDecoderCache


class _SelfAttentionView:
    """Keys and values of decoded tokens."""

    def __init__(self, cache: EncoderDecoderCache) -> None:
        self._cache = cache

    @property
    def length_tokens(self) -> int:
        length: int = self._cache.get_seq_length()
        return length

    def get(self, layer_index: int) -> tuple[Tensor, Tensor] | None:
        return _kept(self._cache.self_attention_cache, layer_index)

    def update(self, key: Tensor, value: Tensor, layer_index: int) -> tuple[Tensor, Tensor]:
        key, value = self._cache.self_attention_cache.update(key, value, layer_index)
        return key, value


class _CrossAttentionView:
    """Keys and values of the encoder's output, computed at the first step."""

    def __init__(self, cache: EncoderDecoderCache) -> None:
        self._cache = cache

    @property
    def length_tokens(self) -> int:
        length: int = self._cache.cross_attention_cache.get_seq_length()
        return length

    def get(self, layer_index: int) -> tuple[Tensor, Tensor] | None:
        if not self._cache.is_updated.get(layer_index, False):
            return None
        return _kept(self._cache.cross_attention_cache, layer_index)

    def update(self, key: Tensor, value: Tensor, layer_index: int) -> tuple[Tensor, Tensor]:
        key, value = self._cache.cross_attention_cache.update(key, value, layer_index)
        self._cache.is_updated[layer_index] = True
        return key, value


class GenerationCache:
    """A `spade_model.cache.DecodingCache` that keeps everything in an `EncoderDecoderCache`.

    Holds no tensors itself, so that beam search may reorder the cache behind its back.

    Raises:
        ValueError: The cache is of another kind, or has a fixed size.
    """

    def __init__(self, cache: Cache) -> None:
        if not isinstance(cache, EncoderDecoderCache):
            raise ValueError(
                f"past_key_values is a {type(cache).__name__}; give an EncoderDecoderCache of two "
                "DynamicCache objects, or leave it out"
            )
        if cache.is_compileable:
            raise ValueError(
                "cache_implementation='static' is not supported by SPADE; leave it out and use the "
                "dynamic cache"
            )
        self.self_attention = _SelfAttentionView(cache)
        self.cross_attention = _CrossAttentionView(cache)


def _kept(cache: Cache, layer_index: int) -> tuple[Tensor, Tensor] | None:
    if layer_index >= len(cache.layers) or cache.layers[layer_index].keys is None:
        return None
    layer = cache.layers[layer_index]
    return layer.keys, layer.values
