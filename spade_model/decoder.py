"""The decoder: full causal attention, cross-attention, learned positions, a cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spade_model.cache import DecodingCache
from spade_model.config import SpadeConfig
from spade_model.decoder_attention import causal_mask
from spade_model.layers import DecoderLayer, layer_norm


class Decoder(nn.Module):
    """Embeddings plus positions, LayerNorm, the layers, a final LayerNorm if configured."""

    def __init__(self, config: SpadeConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.positions = nn.Embedding(config.max_target_length_tokens, config.d_model)
        self.first_layer_norm = layer_norm(config)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            DecoderLayer(config, index) for index in range(config.num_decoder_layers)
        )
        self.final_layer_norm = layer_norm(config) if config.final_layer_norm else nn.Identity()

    def forward(
        self,
        embeddings: Tensor,
        encoder_hidden_states: Tensor,
        *,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        cache: DecodingCache | None = None,
    ) -> Tensor:
        """Decode.

        Args:
            embeddings: Of the new tokens, [B, T, d_model].
            encoder_hidden_states: [B, L, d_model].
            attention_mask: Of the encoder's tokens, bool [B, L], False where padded, or None.
            decoder_attention_mask: Of the decoder's tokens, the cached ones included, bool
                [B, past + T], or None. Positions count valid tokens only.
            cache: Keys and values of the tokens before, extended in place, or None.

        Returns:
            [B, T, d_model].

        Raises:
            ValueError: More tokens than learned positions, or a mask of the wrong length.
        """
        length, past = embeddings.shape[1], 0
        if cache is not None:
            past = cache.self_attention.length_tokens
        limit = self.config.max_target_length_tokens
        if past + length > limit:
            raise ValueError(
                f"the decoder was given {past + length} tokens, above "
                f"max_target_length_tokens={limit}; shorten the targets or raise the field"
            )
        valid = None if decoder_attention_mask is None else decoder_attention_mask.bool()
        self_mask = causal_mask(valid, length, past, embeddings.device)
        cross_mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        if valid is None:
            positions = torch.arange(past, past + length, device=embeddings.device)
        else:
            positions = (valid.long().cumsum(dim=1) - 1).clamp(min=0)[:, past:]
        hidden: Tensor = self.dropout(self.first_layer_norm(embeddings + self.positions(positions)))
        for layer in self.layers:
            inputs = (hidden, self_mask, encoder_hidden_states, cross_mask, cache)
            if self.activation_checkpointing and self.training and cache is None:
                hidden = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                hidden = layer(*inputs)
        output: Tensor = self.final_layer_norm(hidden)
        return output
