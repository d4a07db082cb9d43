"""Text-to-text classification: the decoder learns to write a word for the label.

To classify, each label's words are scored by their likelihood, end of text included: the model
cannot answer anything that is no label, and the answers have probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Trainer
from transformers.modeling_outputs import BaseModelOutput

from finetune.errors import FinetuneError
from spade_model.huggingface import SpadeForConditionalGeneration

IGNORED = -100
"""Label of positions behind the end of a word."""


def encode_words(words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Return target ids [C, T], each with its end of text, -100 behind that.

    Raises:
        FinetuneError: Two words have the same ids, or one has none.
    """
    ids = [tokenizer(word).input_ids for word in words]
    for index, found in enumerate(ids):
        if len(found) < 2 or found in ids[:index]:
            raise FinetuneError(
                f"label {words[index]!r} has no text of its own to be written as; use --mode head "
                "or rename it"
            )
    table = torch.full((len(ids), max(map(len, ids))), IGNORED, dtype=torch.int64)
    for index, found in enumerate(ids):
        table[index, : len(found)] = torch.tensor(found)
    return table


def word_scores(
    model: SpadeForConditionalGeneration, input_ids: Tensor, attention_mask: Tensor, words: Tensor
) -> Tensor:
    """Return the log-likelihood [B, C] of each label's words after each text.

    Args:
        model: In evaluation mode.
        input_ids: int64 [B, L].
        attention_mask: [B, L], 0 where padded.
        words: Target ids [C, T]; see `encode_words`.
    """
    encoded = model.get_encoder()(input_ids, attention_mask)
    states = BaseModelOutput(last_hidden_state=encoded.last_hidden_state)
    scores = []
    # One label after the other: the encoder's states of long texts are not copied for each.
    for row in words:
        word = row[row != IGNORED].expand(len(input_ids), -1)
        logits = model(
            encoder_outputs=states,
            attention_mask=attention_mask,
            decoder_input_ids=model.prepare_decoder_input_ids_from_labels(word),
            use_cache=False,
        ).logits
        chosen = logits.float().log_softmax(dim=-1).gather(2, word[:, :, None])
        scores.append(chosen.sum(dim=(1, 2)))
    return torch.stack(scores, dim=1)


class LabelWordTrainer(Trainer):
    """A Trainer whose batches hold label indices, and whose model writes words.

    Args:
        words: Target ids [C, T]; see `encode_words`.
        common: The Trainer's own arguments.
    """

    def __init__(self, words: Tensor, **common: Any) -> None:
        super().__init__(**common)
        self._words = words.to(self.args.device)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        """Return the mean over the rows of the words' negative log-likelihood."""
        return super().compute_loss(
            model, {**inputs, "labels": self._words[inputs["labels"]]}, *rest, **named
        )

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, **_: Any
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return loss, scores [B, C] and label indices [B]."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            scores = word_scores(
                self.model, inputs["input_ids"], inputs["attention_mask"], self._words
            )
        labels = inputs.get("labels")
        if labels is None:
            return None, scores, None
        loss = -scores.gather(1, labels[:, None]).mean()
        return loss, None if prediction_loss_only else scores, labels
