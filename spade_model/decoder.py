"""The decoder of an encoder-decoder: full causal attention, cross-attention, a cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spade_model.activation_checkpointing import ActivationCheckpointing
from spade_model.attention.cache import DecodingCache
from spade_model.attention.decoder import add_bias, causal_mask
from spade_model.attention.positions import (
    alibi_bias,
    relative_position_bucket,
    rotary_angles,
)
from spade_model.config import SpadeConfig
from spade_model.layers import DecoderLayer
from spade_model.norms import make_norm
from spade_model.recording import StackRecord
from spade_model.sequence_part import SequencePart


class Decoder(nn.Module):
    """Embeddings, plus learned positions, a norm, the layers, a final norm; as configured."""

    def __init__(self, config: SpadeConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = ActivationCheckpointing()
        self.positions = (
            nn.Embedding(config.max_target_length_tokens, config.d_model)
            if config.decoder_position == "learned"
            else None
        )
        self.relative_attention_bias = (
            nn.Embedding(config.relative_attention_num_buckets, config.num_heads)
            if config.decoder_position == "relative_bias"
            else None
        )
        self.first_norm = make_norm(config) if config.embedding_norm else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            DecoderLayer(config, index) for index in range(config.num_decoder_layers)
        )
        self.final_norm = make_norm(config) if config.final_norm else nn.Identity()

    def forward(
        self,
        embeddings: Tensor,
        encoder_hidden_states: Tensor,
        *,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        cache: DecodingCache | None = None,
        record: StackRecord | None = None,
        part: SequencePart | None = None,
    ) -> Tensor:
        """Decode.

        Args:
            embeddings: Of the new tokens, [B, T, d_model].
            encoder_hidden_states: [B, L, d_model].
            attention_mask: Of the encoder's tokens, bool [B, L], False where padded, or None.
            decoder_attention_mask: Of the decoder's tokens, the cached ones included, bool
                [B, past + T], or None. Positions count valid tokens only.
            cache: Keys and values of the tokens before, extended in place, or None.
            record: What is wanted beside the output, filled in place, or None.
            part: Of the encoder's sequences, if its output, mask and cached keys are those of a
                part; all else is the same for all parts.

        Returns:
            [B, T, d_model].

        Raises:
            ValueError: More tokens than learned positions, a mask of the wrong length, or attention
                weights of a part are wanted.
        """
        length, past = embeddings.shape[1], 0
        if cache is not None:
            past = cache.self_attention.length_tokens
        self._check_length(past + length)
        valid = None if decoder_attention_mask is None else decoder_attention_mask.bool()
        self_mask = causal_mask(valid, length, past, embeddings.device)
        cross_mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        if valid is None:
            all_positions = torch.arange(past + length, device=embeddings.device)[None]
        else:
            all_positions = (valid.long().cumsum(dim=1) - 1).clamp(min=0)
        positions = all_positions[:, past:]
        angles = None
        if self.config.decoder_position == "rope":
            angles = rotary_angles(positions, self.config.head_dim)
        elif self.config.decoder_position in ("alibi", "relative_bias"):
            distance = all_positions[:, None, :] - positions[:, :, None]
            self_mask = add_bias(self_mask, self._bias(distance))
        if self.positions is not None:
            embeddings = embeddings + self.positions(positions)
        hidden: Tensor = self.dropout(self.first_norm(embeddings))
        record = StackRecord() if record is None else record
        if record.has_weights and part is not None:
            raise ValueError("attention weights are not there where sequences are cut into parts")
        for index, layer in enumerate(self.layers):
            record.add_hidden(hidden)
            inputs = (hidden, self_mask, angles, encoder_hidden_states, cross_mask, cache)
            if record.has_weights:
                hidden = layer(*inputs, record)
            elif self.training and cache is None:
                hidden = self.activation_checkpointing.run(layer, index, *inputs, None, part)
            else:
                hidden = layer(*inputs, None, part)
        output: Tensor = self.final_norm(hidden)
        record.add_hidden(output)
        return output

    def _bias(self, distance: Tensor) -> Tensor:
        """Return what is added to the scores, [B, H, T, K], for ``key - query`` [B, T, K]."""
        if self.relative_attention_bias is None:
            return alibi_bias(distance, self.config.num_heads).transpose(0, 1)
        buckets = relative_position_bucket(
            distance,
            num_buckets=self.config.relative_attention_num_buckets,
            max_distance=self.config.relative_attention_max_distance_tokens,
            bidirectional=False,
        )
        bias: Tensor = self.relative_attention_bias(buckets)
        return bias.permute(0, 3, 1, 2)

    def _check_length(self, num_tokens: int) -> None:
        limit = self.config.max_target_length_tokens
        if self.positions is not None and num_tokens > limit:
            raise ValueError(
                f"the decoder was given {num_tokens} tokens, above "
                f"max_target_length_tokens={limit}; shorten the targets or raise the field"
            )
