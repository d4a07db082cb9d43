"""The layers of encoder and decoder: sublayers around one residual stream.

With ``normalization='pre'`` a sublayer computes ``x + f(LN(x))``, with ``'post'``
``LN(x + f(x))``, LN the configured norm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spade_model.attention.cache import DecodingCache
from spade_model.attention.decoder import AttendAcross, CausalSelfAttention, CrossAttention
from spade_model.attention.long import AttentionContext, LongSelfAttention
from spade_model.config import SpadeConfig
from spade_model.decoding import LayerMemory
from spade_model.feed_forward import FeedForward
from spade_model.norms import make_norm
from spade_model.recording import StackRecord
from spade_model.state_space.mixer import OtherParts
from spade_model.state_space.registry import make_sequence_mixer
from spade_model.state_space.segments import SegmentLayout


class ResidualSublayer(nn.Module):
    """The norm, dropout and sum that surround the function of a sublayer."""

    def __init__(self, config: SpadeConfig) -> None:
        super().__init__()
        self.normalize_before = config.normalization == "pre"
        self.norm = make_norm(config)
        self.dropout = nn.Dropout(config.dropout)

    def add(self, hidden: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply the sublayer's function and join the residual stream, [B, L, d_model]."""
        if self.normalize_before:
            joined: Tensor = hidden + self.dropout(function(self.norm(hidden)))
        else:
            joined = self.norm(hidden + self.dropout(function(hidden)))
        return joined


@dataclass(frozen=True)
class TokenContext:
    """What the layers of the long stack need to know of a batch; made once, read by all."""

    valid: Tensor | None
    """Bool [B, L], False where padded, or None."""
    segments: SegmentLayout | None
    """Where the documents of packed rows begin and end, or None."""
    attention: AttentionContext
    """Who sees whom."""
    memory: LayerMemory | None = None
    """What the layer knows of the tokens before while decoding; then each layer's context differs.
    None for whole sequences."""
    others: OtherParts | None = None
    """Whoever knows the rest of the sequences where these are parts of them, or None."""


class LocalMixing(ResidualSublayer):
    """Token mixing of most layers: local attention alone."""

    def __init__(self, config: SpadeConfig, layer_index: int) -> None:
        super().__init__(config)
        self.local_attention = LongSelfAttention(config, layer_index)

    def forward(
        self, hidden: Tensor, context: TokenContext, shared_bias: Tensor | None = None
    ) -> Tensor:
        """[B, L, d_model] to the same; `shared_bias` as of `LongSelfAttention`."""
        return self.add(
            hidden, lambda normed: self.local_attention(normed, context.attention, shared_bias)
        )


class GlobalLocalMixing(ResidualSublayer):
    """Token mixing with a state space for what is far: what makes the network SPADE.

    With g the state space's output and a that of local attention (section 3 of the paper):
    ``W [LN g; LN a] + b`` if they are concatenated, ``w LN g + (1 - w) LN a`` if added, and
    ``attention(state_space(z))`` if stacked.
    """

    def __init__(self, config: SpadeConfig, layer_index: int, *, causal: bool) -> None:
        super().__init__(config)
        self.combine, self.global_weight = config.combine, config.combine_weight
        self.state_space = make_sequence_mixer(config, causal=causal)
        self.local_attention = LongSelfAttention(config, layer_index)
        if config.combine != "stack":
            global_width = config.state_space_channels * config.d_model
            self.global_norm = make_norm(config, global_width)
            self.local_norm = make_norm(config)
        if config.combine == "concat":
            self.aggregate = nn.Linear(global_width + config.d_model, config.d_model)

    def forward(
        self, hidden: Tensor, context: TokenContext, shared_bias: Tensor | None = None
    ) -> Tensor:
        """[B, L, d_model] to the same; `shared_bias` as of `LongSelfAttention`."""

        def mix(normed: Tensor) -> Tensor:
            if context.memory is None:
                far = self.state_space(normed, context.valid, context.segments, context.others)
            else:
                far = context.memory.mix(self.state_space, normed, context.valid)
            source = far if self.combine == "stack" else normed
            near = self.local_attention(source, context.attention, shared_bias)
            return self.join(far, near)

        return self.add(hidden, mix)

    def join(self, far: Tensor, near: Tensor) -> Tensor:
        """Combine the state space's output [B, L, C d_model] with attention's [B, L, d_model]."""
        if self.combine == "stack":
            return near
        far, near = self.global_norm(far), self.local_norm(near)
        if self.combine == "add":
            return self.global_weight * far + (1 - self.global_weight) * near
        joined: Tensor = self.aggregate(torch.cat([far, near], dim=-1))
        return joined


class PositionWise(ResidualSublayer):
    """The feed-forward sublayer."""

    def __init__(self, config: SpadeConfig, *, bias: bool) -> None:
        super().__init__(config)
        self.feed_forward = FeedForward(config, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, L, d_model] to the same."""
        return self.add(hidden, self.feed_forward)


class LongLayer(nn.Module):
    """A layer of the encoder or of the causal language model: token mixing, then feed-forward."""

    mixing: LocalMixing | GlobalLocalMixing

    def __init__(self, config: SpadeConfig, layer_index: int, *, causal: bool) -> None:
        super().__init__()
        if layer_index in config.state_space_layer_indices:
            self.mixing = GlobalLocalMixing(config, layer_index, causal=causal)
        else:
            self.mixing = LocalMixing(config, layer_index)
        self.position_wise = PositionWise(config, bias=config.feed_forward_bias)

    def forward(
        self, hidden: Tensor, context: TokenContext, shared_bias: Tensor | None = None
    ) -> Tensor:
        """[B, L, d_model] to the same; `shared_bias` as of `LongSelfAttention`."""
        output: Tensor = self.position_wise(self.mixing(hidden, context, shared_bias))
        return output


class CausalMixing(ResidualSublayer):
    """Self-attention of the decoder."""

    def __init__(self, config: SpadeConfig, layer_index: int) -> None:
        super().__init__(config)
        self.attention = CausalSelfAttention(config, layer_index)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        angles: Tensor | None,
        cache: DecodingCache | None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """[B, T, d_model] to the same; `weights` as of `CausalSelfAttention`."""
        kept = None if cache is None else cache.self_attention
        return self.add(hidden, lambda normed: self.attention(normed, mask, angles, kept, weights))


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
        weights: list[Tensor] | None = None,
        across: AttendAcross | None = None,
    ) -> Tensor:
        """[B, T, d_model] to the same; `weights` and `across` as of `CrossAttention`."""
        kept = None if cache is None else cache.cross_attention
        return self.add(
            hidden,
            lambda normed: self.attention(
                normed, encoder_hidden_states, mask, kept, weights, across
            ),
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
        angles: Tensor | None,
        encoder_hidden_states: Tensor,
        cross_mask: Tensor | None,
        cache: DecodingCache | None,
        record: StackRecord | None = None,
        across: AttendAcross | None = None,
    ) -> Tensor:
        """[B, T, d_model] to the same; `record` is given the attention weights it asks for."""
        record = StackRecord() if record is None else record
        hidden = self.mixing(hidden, self_mask, angles, cache, record.attention_weights)
        hidden = self.cross_mixing(
            hidden,
            encoder_hidden_states,
            cross_mask,
            cache,
            record.cross_attention_weights,
            across,
        )
        output: Tensor = self.position_wise(hidden)
        return output
