"""The encoder of `spade_model` with a classifier of texts or of tokens."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput
from transformers.utils.generic import can_return_tuple

from spade_model.huggingface.configuration import SpadePretrainedConfig
from spade_model.huggingface.encoder import SpadeEncoderWithHead


class SpadeForSequenceClassification(SpadeEncoderWithHead):
    """The encoder with a linear classifier on the mean of its outputs.

    One text or a pair, as the tokenizer joins them. `num_labels` and `problem_type` of the
    configuration say what is predicted: a class, several yes-or-no answers, or numbers.
    """

    # The loss is a mean over the batch whatever the problem type.
    accepts_loss_kwargs = False

    def __init__(self, config: SpadePretrainedConfig) -> None:
        super().__init__(config)
        self.classifier = nn.Linear(config.d_model, config.num_labels)
        self._finish()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Compute logits [B, num_labels], and the loss if there are labels.

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], 0 where padded; padding takes no part in the mean.
            inputs_embeds: [B, L, d_model] instead of `input_ids`.
            labels: Class indices [B], 0 or 1 [B, num_labels], or numbers [B] or [B, num_labels].
            output_hidden_states: See `SpadeEncoderView.forward`.
            output_attentions: See there.
            return_dict: Whether to return an object instead of a tuple.

        Raises:
            ValueError: Both or neither of the inputs were given.
        """
        asked = {
            "output_hidden_states": output_hidden_states,
            "output_attentions": output_attentions,
        }
        encoded = self.model(input_ids, attention_mask, inputs_embeds, **asked, return_dict=True)
        hidden = encoded.last_hidden_state
        if attention_mask is None:
            pooled = hidden.mean(dim=1)
        else:
            weights = attention_mask.to(hidden)[:, :, None]
            # Not a product: what stands at padded positions has no meaning and need not be finite.
            summed = hidden.masked_fill(weights == 0, 0).sum(dim=1)
            pooled = summed / weights.sum(dim=1).clamp(min=1)
        logits = self.classifier(self.dropout(pooled))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


class SpadeForTokenClassification(SpadeEncoderWithHead):
    """The encoder with a linear classifier of each token, as for named entities."""

    # The Trainer counts labels over all accumulated batches and passes the number.
    accepts_loss_kwargs = True

    def __init__(self, config: SpadePretrainedConfig) -> None:
        super().__init__(config)
        self.classifier = nn.Linear(config.d_model, config.num_labels)
        self._finish()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> TokenClassifierOutput:
        """Compute logits [B, L, num_labels], and the loss if there are labels.

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], 0 where padded.
            inputs_embeds: [B, L, d_model] instead of `input_ids`.
            labels: Class indices [B, L], -100 where ignored, as padding has to be.
            output_hidden_states: See `SpadeEncoderView.forward`.
            output_attentions: See there.
            num_items_in_batch: Number of labels by which to divide the summed loss, for gradient
                accumulation; by default those of this batch.
            return_dict: Whether to return an object instead of a tuple.

        Raises:
            ValueError: Both or neither of the inputs were given.
        """
        asked = {
            "output_hidden_states": output_hidden_states,
            "output_attentions": output_attentions,
        }
        encoded = self.model(input_ids, attention_mask, inputs_embeds, **asked, return_dict=True)
        logits = self.classifier(self.dropout(encoded.last_hidden_state))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits, labels.contiguous(), self.config, num_items_in_batch=num_items_in_batch
            )
        return TokenClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
