"""The encoder of `spade_model` with pointers to the first and the last token of an answer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import QuestionAnsweringModelOutput
from transformers.utils.generic import can_return_tuple

from spade_model.huggingface.configuration import SpadePretrainedConfig
from spade_model.huggingface.encoder import SpadeEncoderWithHead


class SpadeForQuestionAnswering(SpadeEncoderWithHead):
    """The encoder with one logit a token for the start and one for the end of the answer.

    Question and text stand in one row. An answer is never looked for in padding.
    """

    # The loss is a mean over the batch.
    accepts_loss_kwargs = False

    def __init__(self, config: SpadePretrainedConfig) -> None:
        super().__init__(config)
        self.qa_outputs = nn.Linear(config.d_model, 2)
        self._finish()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> QuestionAnsweringModelOutput:
        """Compute start and end logits [B, L] each, and the loss if both positions are given.

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], 0 where padded; logits there are the smallest number.
            inputs_embeds: [B, L, d_model] instead of `input_ids`.
            start_positions: First token of each answer, int64 [B]; L or more is ignored.
            end_positions: Last token of each answer, int64 [B]; L or more is ignored.
            output_hidden_states: See `SpadeEncoderView.forward`.
            output_attentions: See there.
            return_dict: Whether to return an object instead of a tuple.

        Raises:
            ValueError: Both or neither of the inputs were given.
        """
        encoded = self.model(
            input_ids,
            attention_mask,
            inputs_embeds,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        logits: Tensor = self.qa_outputs(self.dropout(encoded.last_hidden_state))
        if attention_mask is not None:
            lowest = torch.finfo(logits.dtype).min
            logits = logits.masked_fill(attention_mask[:, :, None] == 0, lowest)
        start_logits, end_logits = (x.contiguous() for x in logits.unbind(dim=-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
