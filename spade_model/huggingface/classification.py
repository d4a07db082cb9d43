"""The encoder of `spade_model` with a classifier, as a `transformers` model."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils.generic import can_return_tuple

from spade_model.huggingface.configuration import SpadePretrainedConfig
from spade_model.huggingface.modeling import SpadeBase, SpadeEncoderView, build_encoder


class SpadeForSequenceClassification(SpadeBase):
    """The encoder with a linear classifier on the mean of its outputs.

    One text or a pair, as the tokenizer joins them. `num_labels` and `problem_type` of the
    configuration say what is predicted: a class, several yes-or-no answers, or numbers.
    """

    # The decoder of a pretrained checkpoint is left out on purpose.
    _keys_to_ignore_on_load_unexpected = [r"^(model\.)?decoder\.", r"^lm_head\."]  # noqa: RUF012
    # The loss is a mean over the batch whatever the problem type.
    accepts_loss_kwargs = False

    def __init__(self, config: SpadePretrainedConfig) -> None:
        super().__init__(config)
        network = build_encoder(config)
        self.model = SpadeEncoderView(network.shared, network.encoder)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.d_model, config.num_labels)
        self._finish()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Compute logits [B, num_labels], and the loss if there are labels.

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], 0 where padded; padding takes no part in the mean.
            inputs_embeds: [B, L, d_model] instead of `input_ids`.
            labels: Class indices [B], 0 or 1 [B, num_labels], or numbers [B] or [B, num_labels].
            return_dict: Whether to return an object instead of a tuple.

        Raises:
            ValueError: Both or neither of the inputs were given.
        """
        hidden = self.model(input_ids, attention_mask, inputs_embeds).last_hidden_state
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
        return SequenceClassifierOutput(loss=loss, logits=logits)
