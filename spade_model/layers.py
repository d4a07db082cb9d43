"""The layers of encoder and decoder: sublayers around one residual stream.

With ``normalization='pre'`` a sublayer computes ``x + f(LN(x))``, with ``'post'``
``LN(x + f(x))``. LayerNorms are the full ones, with mean and bias.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from spade_model.cache import DecodingCache
from spade_model.config import SpadeConfig
from spade_model.decoder_attention import CausalSelfAttention, CrossAttention
from spade_model.feed_forward import FeedForward
from spade_model.local_attention import LocalSelfAttention, LocalWindows
from spade_model.state_space import StateSpace


def layer_norm(config: SpadeConfig) -> nn.LayerNorm:
    """Return a LayerNorm over the residual stream."""
    return nn.LayerNorm(config.d_model, eps=config.layer_norm_epsilon)


class ResidualSublayer(nn.Module):
    """The norm, dropout and sum that surround the function of a sublayer."""

    def __init__(self, config: SpadeConfig) -> None:
        super().__init__()
        self.normalize_before = config.normalization == "pre"
        self.layer_norm = layer_norm(config)
        self.dropout = nn.Dropout(config.dropout)

    def add(self, hidden: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply the sublayer's function and join the residual stream, [B, L, d_model]."""
        if self.normalize_before:
            joined: Tensor = hidden + self.dropout(function(self.layer_norm(hidden)))
        else:
            joined = self.layer_norm(hidden + self.dropout(function(hidden)))
        return joined


class LocalMixing(ResidualSublayer):
    """Token mixing of the upper encoder layers: local attention alone."""

    def __init__(self, config: SpadeConfig) -> None:
        super().__init__(config)
        self.local_attention = LocalSelfAttention(config)

    def forward(self, hidden: Tensor, valid: Tensor | None, windows: LocalWindows) -> Tensor:
        """[B, L, d_model] to the same; padding is known from the windows."""
        return self.add(hidden, lambda normed: self.local_attention(normed, windows))


class GlobalLocalMixing(ResidualSublayer):
    """Token mixing of the bottom encoder layers, what makes the network SPADE.

    ``f(z) = W [LN_g(S4(z)); LN_l(attention(z))] + b``: a state space for what is far and local
    attention for what is near, normalised apart, joined by one projection (section 3 of the
    paper).
    """

    def __init__(self, config: SpadeConfig) -> None:
        super().__init__(config)
        self.state_space = StateSpace(config)
        self.local_attention = LocalSelfAttention(config)
        self.global_layer_norm = layer_norm(config)
        self.local_layer_norm = layer_norm(config)
        self.aggregate = nn.Linear(2 * config.d_model, config.d_model)

    def forward(self, hidden: Tensor, valid: Tensor | None, windows: LocalWindows) -> Tensor:
        """[B, L, d_model] to the same; `valid` is bool [B, L] or None."""

        def mix(normed: Tensor) -> Tensor:
            far = self.global_layer_norm(self.state_space(normed, valid))
            near = self.local_layer_norm(self.local_attention(normed, windows))
            mixed: Tensor = self.aggregate(torch.cat([far, near], dim=-1))
            return mixed

        return self.add(hidden, mix)


class PositionWise(ResidualSublayer):
    """The feed-forward sublayer."""

    def __init__(self, config: SpadeConfig, *, bias: bool) -> None:
        super().__init__(config)
        self.feed_forward = FeedForward(config, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, L, d_model] to the same."""
        return self.add(hidden, self.feed_forward)


class EncoderLayer(nn.Module):
    """Token mixing, with a state space in the bottom layers, then feed-forward."""

    def __init__(self, config: SpadeConfig, layer_index: int) -> None:
        super().__init__()
        with_state_space = layer_index < config.state_space_layers
        self.mixing = GlobalLocalMixing(config) if with_state_space else LocalMixing(config)
        self.position_wise = PositionWise(config, bias=config.feed_forward_bias)

    def forward(self, hidden: Tensor, valid: Tensor | None, windows: LocalWindows) -> Tensor:
        """[B, L, d_model] to the same."""
        output: Tensor = self.position_wise(self.mixing(hidden, valid, windows))
        return output


class CausalMixing(ResidualSublayer):
    """Self-attention of the decoder."""

    def __init__(self, config: SpadeConfig, layer_index: int) -> None:
        super().__init__(config)
        self.attention = CausalSelfAttention(config, layer_index)

    def forward(self, hidden: Tensor, mask: Tensor | None, cache: DecodingCache | None) -> Tensor:
        """[B, T, d_model] to the same."""
        kept = None if cache is None else cache.self_attention
        return self.add(hidden, lambda normed: self.attention(normed, mask, kept))


class CrossMixing(ResidualSublayer):
    """Attention of the decoder to the encoder."""

    def __init__(self, config: SpadeConfig, layer_index: int) -> None:
        super().__init__(config)
        self.attention = CrossAttention(config, layer_index)

    def forward(
        self,
        hidden: Tensor,
        encoder_hidden_states: Tensor,
        mask: Tensor | None,
        cache: DecodingCache | None,
    ) -> Tensor:
        """[B, T, d_model] to the same."""
        kept = None if cache is None else cache.cross_attention
        return self.add(
            hidden, lambda normed: self.attention(normed, encoder_hidden_states, mask, kept)
        )


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention, feed-forward."""

    def __init__(self, config: SpadeConfig, layer_index: int) -> None:
        super().__init__()
        self.mixing = CausalMixing(config, layer_index)
        self.cross_mixing = CrossMixing(config, layer_index)
        bias = config.feed_forward_bias or config.decoder_bias
        self.position_wise = PositionWise(config, bias=bias)

    def forward(
        self,
        hidden: Tensor,
        self_mask: Tensor | None,
        encoder_hidden_states: Tensor,
        cross_mask: Tensor | None,
        cache: DecodingCache | None,
    ) -> Tensor:
        """[B, T, d_model] to the same."""
        hidden = self.mixing(hidden, self_mask, cache)
        hidden = self.cross_mixing(hidden, encoder_hidden_states, cross_mask, cache)
        output: Tensor = self.position_wise(hidden)
        return output
