"""The encoder: linear in the length, without absolute positions."""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spade_model.config import SpadeConfig
from spade_model.layers import EncoderLayer, layer_norm
from spade_model.local_attention import local_windows


class Encoder(nn.Module):
    """LayerNorm on the embeddings, the layers, and a final LayerNorm if configured."""

    def __init__(self, config: SpadeConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.first_layer_norm = layer_norm(config)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(config, index) for index in range(config.num_encoder_layers)
        )
        self.final_layer_norm = layer_norm(config) if config.final_layer_norm else nn.Identity()

    def forward(self, embeddings: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Encode.

        Args:
            embeddings: [B, L, d_model].
            attention_mask: Bool [B, L], False where padded, or None if nothing is padded (which
                is faster). Padding may be anywhere.

        Returns:
            [B, L, d_model]; rows of padded positions have no meaning, and no influence.
        """
        valid = None if attention_mask is None else attention_mask.bool()
        windows = local_windows(self.config, embeddings.shape[1], valid, embeddings.device)
        hidden: Tensor = self.dropout(self.first_layer_norm(embeddings))
        for layer in self.layers:
            if self.activation_checkpointing and self.training:
                hidden = checkpoint(layer, hidden, valid, windows, use_reentrant=False)
            else:
                hidden = layer(hidden, valid, windows)
        output: Tensor = self.final_layer_norm(hidden)
        return output
