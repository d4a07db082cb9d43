"""Full attention of the decoder: causal over its own tokens, and across to the encoder."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_model.attention.cache import KeyValueCache
from spade_model.attention.positions import rotate
from spade_model.config import SpadeConfig


def causal_mask(
    valid: Tensor | None, length_tokens: int, past_tokens: int, device: torch.device
) -> Tensor | None:
    """Return which keys each decoder query may see, or None if plain causality says it all.

    A query sees the valid keys up to itself, and always itself: a row without any key would have
    no meaning, whatever the mask says.

    Args:
        valid: Bool [B, past + T], False where padded, or None.
        length_tokens: T, the queries.
        past_tokens: Keys in front of the first query.
        device: Where the hidden states are.

    Returns:
        Bool [B or 1, 1, T, past + T], or None: then every query sees all keys if there is one
        query, and causality holds from the first key on if there are more.

    Raises:
        ValueError: The mask covers another number of keys.
    """
    num_keys = past_tokens + length_tokens
    if valid is None and (length_tokens == 1 or past_tokens == 0):
        return None
    if valid is None:
        valid = torch.ones(1, num_keys, dtype=torch.bool, device=device)
    elif valid.shape[1] != num_keys:
        raise ValueError(
            f"decoder_attention_mask covers {valid.shape[1]} tokens but there are {num_keys}; "
            "give one value for each cached and each new token"
        )
    query = torch.arange(past_tokens, num_keys, device=device)[:, None]
    key = torch.arange(num_keys, device=device)[None, :]
    allowed = (valid[:, None, :] & (key <= query)) | (key == query)
    return allowed[:, None]


def add_bias(mask: Tensor | None, bias: Tensor) -> Tensor:
    """Return one mask that holds both what may be seen and what is added to the scores.

    Args:
        mask: From `causal_mask`.
        bias: [B or 1, H, T, past + T].
    """
    queries, keys = bias.shape[-2:]
    if mask is None:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=bias.device)
        mask = mask.tril(keys - queries)
    return bias.masked_fill(~mask, float("-inf"))


def _split_heads(x: Tensor, parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """[B, T, parts * H * D] to `parts` tensors [B, H, T, D]."""
    heads = x.view(*x.shape[:2], parts, num_heads, -1)
    return tuple(part.transpose(1, 2) for part in heads.unbind(2))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    causal: bool,
    dropout: float,
    scale: float,
    weights: list[Tensor] | None,
) -> Tensor:
    """Attend, by a fused kernel unless the weights are wanted.

    Args:
        query: [B, H, T, D].
        key: [B, H, K, D].
        value: [B, H, K, D].
        mask: Bool or added to the scores, broadcast to [B, H, T, K], or None.
        causal: Whether the T queries see the first keys up to their own place; without a mask.
        dropout: Probability of dropping a weight.
        scale: Multiplies the products of queries and keys.
        weights: Receives the weights [B, H, T, K] before dropout, or None.

    Returns:
        [B, H, T, D].
    """
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(query.dtype)
    if weights is None:
        return functional.scaled_dot_product_attention(
            query, key, value, mask, dropout_p=dropout, is_causal=causal, scale=scale
        )
    scores = (query * scale) @ key.mT
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if causal:
        mask = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, float("-inf"))
    elif mask is not None:
        scores = scores + mask
    # A row that sees nothing attends to nothing, as in the fused kernels.
    shares = torch.softmax(scores, dim=-1).nan_to_num().to(value.dtype)
    weights.append(shares)
    return functional.dropout(shares, dropout, training=dropout > 0.0) @ value


class AttendAcross(Protocol):
    """Whoever attends to an encoder's output of which only a part is here."""

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        *,
        dropout: float,
        scale: float,
    ) -> Tensor:
        """Attend to all parts; arguments as of `attend`, of this part, with a bool mask or none."""


class CausalSelfAttention(nn.Module):
    """Decoder self-attention; scores are scaled."""

    def __init__(self, config: SpadeConfig, layer_index: int) -> None:
        super().__init__()
        self.layer_index = layer_index
        self.num_heads, self.scale = config.num_heads, config.head_dim**-0.5
        self.dropout = config.dropout
        inner, bias = config.inner_dim, config.decoder_bias
        self.query_key_value = nn.Linear(config.d_model, 3 * inner, bias=bias)
        self.output = nn.Linear(inner, config.d_model, bias=bias)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        angles: Tensor | None,
        cache: KeyValueCache | None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """Attend to the past.

        Args:
            hidden: [B, T, d_model].
            mask: From `causal_mask` or `add_bias`.
            angles: Of rotary positions, [B or 1, T, D / 2], or None.
            cache: Keys and values of the tokens before, extended in place, or None.
            weights: Receives the weights [B, H, T, past + T], or None.

        Returns:
            [B, T, d_model].
        """
        query, key, value = _split_heads(self.query_key_value(hidden), 3, self.num_heads)
        if angles is not None:
            query, key = (rotate(x.transpose(1, 2), angles).transpose(1, 2) for x in (query, key))
        if cache is not None:
            key, value = cache.update(key, value, self.layer_index)
        attended = attend(
            query,
            key,
            value,
            mask,
            causal=mask is None and bool(query.shape[2] > 1),  # While exporting, not yet a bool.
            dropout=self.dropout if self.training else 0.0,
            scale=self.scale,
            weights=weights,
        )
        output: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return output


class CrossAttention(nn.Module):
    """Attention from the decoder to the encoder's output."""

    def __init__(self, config: SpadeConfig, layer_index: int) -> None:
        super().__init__()
        self.layer_index = layer_index
        self.num_heads, self.scale = config.num_heads, config.head_dim**-0.5
        self.dropout = config.dropout
        inner, bias = config.inner_dim, config.decoder_bias
        self.query = nn.Linear(config.d_model, inner, bias=bias)
        self.key_value = nn.Linear(config.d_model, 2 * inner, bias=bias)
        self.output = nn.Linear(inner, config.d_model, bias=bias)

    def forward(
        self,
        hidden: Tensor,
        encoder_hidden_states: Tensor,
        mask: Tensor | None,
        cache: KeyValueCache | None,
        weights: list[Tensor] | None = None,
        across: AttendAcross | None = None,
    ) -> Tensor:
        """Attend to the encoder.

        Args:
            hidden: [B, T, d_model].
            encoder_hidden_states: [B, L, d_model].
            mask: Bool [B, 1, 1, L], False where padded, or None.
            cache: Filled at the first call and then used instead of the encoder's output.
            weights: Receives the weights [B, H, T, L], or None.
            across: Attends where the encoder's output, mask and cache are those of a part, or None;
                then without `weights`.

        Returns:
            [B, T, d_model].
        """
        (query,) = _split_heads(self.query(hidden), 1, self.num_heads)
        kept = None if cache is None else cache.get(self.layer_index)
        if kept is not None:
            key, value = kept
        else:
            key, value = _split_heads(self.key_value(encoder_hidden_states), 2, self.num_heads)
            if cache is not None:
                key, value = cache.update(key, value, self.layer_index)
        dropout = self.dropout if self.training else 0.0
        if across is not None:
            attended = across.attend(query, key, value, mask, dropout=dropout, scale=self.scale)
        else:
            attended = attend(
                query,
                key,
                value,
                mask,
                causal=False,
                dropout=dropout,
                scale=self.scale,
                weights=weights,
            )
        output: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return output
