"""The encoder of `spade_model` as a `transformers` model, and what its heads have in common."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import can_return_tuple

from spade_model.huggingface.base import SpadeBase, build_encoder
from spade_model.huggingface.configuration import SpadePretrainedConfig


class SpadeEncoderBase(SpadeBase):
    """A model of the encoder alone, which loads from folders with a decoder as well.

    Its configuration becomes that of the encoder alone, a copy of the one given.
    """

    # The decoder of a pretrained checkpoint is left out on purpose.
    _keys_to_ignore_on_load_unexpected = [r"^(model\.)?decoder\.", r"^lm_head\."]  # noqa: RUF012

    def __init__(self, config: SpadePretrainedConfig) -> None:
        super().__init__(config.for_encoder())


class SpadeEncoderModel(SpadeEncoderBase):
    """The encoder without a head; what `AutoModelForTextEncoding` loads.

    Raises:
        ValueError: The configuration is that of a causal language model.
    """

    def __init__(self, config: SpadePretrainedConfig) -> None:
        super().__init__(config)
        network = build_encoder(self.config)
        self.shared, self.encoder = network.shared, network.encoder
        self._finish()

    def _network(self) -> SpadeEncoderModel:
        return self

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutput:
        """Encode ids [B, L] to [B, L, d_model].

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], 0 where padded. Padding may be on either side.
            inputs_embeds: [B, L, d_model] instead of `input_ids`.
            output_hidden_states: See `SpadeEncoderView.forward`.
            output_attentions: See there.
            return_dict: Whether to return an object instead of a tuple.

        Raises:
            ValueError: Both or neither of the inputs were given.
        """
        asked = (output_hidden_states, output_attentions)
        output: BaseModelOutput = self.get_encoder()(
            input_ids, attention_mask, inputs_embeds, *asked
        )
        return output


class SpadeEncoderWithHead(SpadeEncoderBase):
    """The encoder and dropout on its outputs; a subclass adds a linear head and its loss."""

    def __init__(self, config: SpadePretrainedConfig) -> None:
        super().__init__(config)
        self.model = SpadeEncoderModel(self.config)
        self.dropout = nn.Dropout(self.config.dropout)
