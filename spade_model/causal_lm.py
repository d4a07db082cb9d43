"""The causal language model with its tied output head: loss, logits, constant-memory decoding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spade_model.activation_checkpointing import ActivationCheckpointing
from spade_model.attention.backends import check_backend
from spade_model.config import SpadeConfig
from spade_model.decoding import CausalCache
from spade_model.initialization import initialize_parameters
from spade_model.seq2seq import IGNORED_LABEL, cross_entropy, summed_cross_entropy
from spade_model.sequence_part import SequencePart
from spade_model.stack import LongStack


@dataclass(frozen=True)
class CausalLMOutput:
    """What `SpadeForCausalLM` returns."""

    loss: Tensor | None
    """Mean cross entropy in nats over labels that are not ignored, float32; None without labels."""
    logits: Tensor
    """Of the token after each one, [B, L, vocab_size]."""


class SpadeCausalModel(nn.Module):
    """Token embedding and causal stack, without a head.

    Raises:
        ValueError: The configuration has an encoder.
    """

    def __init__(self, config: SpadeConfig) -> None:
        super().__init__()
        if not config.is_causal_lm:
            raise ValueError(
                f"num_encoder_layers={config.num_encoder_layers} makes no causal language model; "
                "use 0, or build SpadeForSeq2Seq"
            )
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.decoder = LongStack(config, causal=True)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        cache: CausalCache | None = None,
        part: SequencePart | None = None,
    ) -> Tensor:
        """Return the stack's output [B, L, d_model]; arguments as of `LongStack.forward`."""
        hidden: Tensor = self.decoder(
            self.shared(input_ids), attention_mask, segment_ids, cache, part=part
        )
        return hidden


class SpadeForCausalLM(nn.Module):
    """A language model of local attention and causal state spaces, linear in the length.

    The model of the paper's section on language modelling: ``num_encoder_layers: 0``. Parameters
    are float32 and drawn from torch's generator while constructing, so the same
    `torch.manual_seed` gives the same weights. Train in bfloat16 under `torch.autocast`.

    Raises:
        ValueError: The configuration has an encoder.
    """

    def __init__(self, config: SpadeConfig) -> None:
        super().__init__()
        self.config = config
        self.model = SpadeCausalModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.lm_head.weight = self.model.shared.weight
        initialize_parameters(self.model, config, tokens=self.model.shared)

    def set_activation_checkpointing(self, chosen: ActivationCheckpointing) -> None:
        """Choose what the layers keep while training and what they compute again."""
        self.model.decoder.activation_checkpointing = chosen

    def set_attention_backend(self, backend: str) -> None:
        """Choose who computes attention, see `spade_model.attention.backends`.

        Raises:
            ValueError: There is no such backend.
        """
        self.model.decoder.attention_backend = check_backend(backend)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        part: SequencePart | None = None,
    ) -> CausalLMOutput:
        """Predict the token after each one, and compare with labels if there are any.

        Args:
            input_ids: int64 [B, L].
            labels: int64 [B, L], -100 where ignored: the input ids themselves, not shifted.
            attention_mask: Bool [B, L], False where padded, or None. Padding may be anywhere; time
                passes there. Padded labels have to be ignored by the labels.
            segment_ids: int64 [B, L]: documents of packed rows, which do not meet, or None. The
                first token of a document is then no label.
            part: Whoever holds the rest of the sequences, if all of these, labels as well, are of a
                part of them, or None; see `spade_model.context_parallel.part`. The loss is that of
                the whole sequences, the same for all parts.
        """
        logits: Tensor = self.lm_head(self.model(input_ids, attention_mask, segment_ids, part=part))
        loss = None if labels is None else next_token_loss(logits, labels, segment_ids, part)
        return CausalLMOutput(loss, logits)

    def new_cache(self) -> CausalCache:
        """Return an empty cache for `decode`."""
        return CausalCache(self.config)

    def decode(
        self,
        input_ids: Tensor,
        cache: CausalCache,
        *,
        attention_mask: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Append tokens to a cache: one in constant time, or many in parallel.

        Args:
            input_ids: int64 [B, T].
            cache: From `new_cache`, extended in place.
            attention_mask: Of these tokens, bool [B, T], False where padded, or None.
            last_only: Whether only the last logits are wanted, as after a prompt.

        Returns:
            Logits of the token after each one, [B, T or 1, vocab_size].
        """
        hidden = self.model(input_ids, attention_mask, None, cache)
        logits: Tensor = self.lm_head(hidden[:, -1:] if last_only else hidden)
        return logits

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, *, attention_mask: Tensor | None = None, max_new_tokens: int
    ) -> Tensor:
        """Continue prompts greedily, one token a step, in constant memory and time a token.

        Args:
            input_ids: int64 [B, L].
            attention_mask: Bool [B, L], False where padded, or None. Padding may be on either
                side: rows are moved to end together.
            max_new_tokens: Longest continuation.

        Returns:
            int64 [B, T] with T at most `max_new_tokens`, without the prompt: each row up to and
            with its first `eos_token_id`, then `pad_token_id`.

        Raises:
            ValueError: `max_new_tokens` is below 1, or a prompt has no token.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens} is below 1; ask for a token or more")
        if attention_mask is not None:
            input_ids, attention_mask = _ending_together(input_ids, attention_mask.bool())
        cache = self.new_cache()
        logits = self.decode(input_ids, cache, attention_mask=attention_mask, last_only=True)
        finished = torch.zeros_like(input_ids[:, :1], dtype=torch.bool)
        generated: list[Tensor] = []
        while True:
            token = logits.argmax(dim=-1).masked_fill(finished, self.config.pad_token_id)
            generated.append(token)
            finished = finished | (token == self.config.eos_token_id)
            if len(generated) == max_new_tokens or bool(finished.all()):
                return torch.cat(generated, dim=1)
            logits = self.decode(token, cache)


def _ending_together(input_ids: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Move padding behind the last token of a row to its front.

    Raises:
        ValueError: A row has no token.
    """
    if not bool(valid.any(dim=1).all()):
        raise ValueError("attention_mask leaves a prompt without a token; start it with one")
    behind = valid.flip(1).long().argmax(dim=1, keepdim=True)
    source = torch.arange(valid.shape[1], device=valid.device) - behind
    source = source.remainder(valid.shape[1])
    return input_ids.gather(1, source), valid.gather(1, source)


def next_token_loss(
    logits: Tensor,
    labels: Tensor,
    segment_ids: Tensor | None = None,
    part: SequencePart | None = None,
) -> Tensor:
    """Return the mean cross entropy of each token's label given the tokens before.

    Args:
        logits: [B, L, V].
        labels: int64 [B, L], of the tokens themselves; -100 where ignored.
        segment_ids: int64 [B, L] or None; the first label of a segment is ignored.
        part: Whoever holds the rest of the sequences, or None. What each part ends with is to
            predict what the next begins with, and the mean is over all parts.

    Returns:
        A scalar, float32 at least; 0 if every label is ignored.
    """
    if part is not None:
        ids = None if segment_ids is None else part.reaching_next(segment_ids)
        targets = predicted_labels(part.reaching_next(labels), ids)
        total, count = summed_cross_entropy(logits[:, : targets.shape[1]], targets)
        return part.total(total) / part.total(count).clamp(min=1)
    return cross_entropy(logits[:, :-1], predicted_labels(labels, segment_ids))


def predicted_labels(labels: Tensor, segment_ids: Tensor | None = None) -> Tensor:
    """Return what each token but the last is to predict, [B, L - 1]; as of `next_token_loss`."""
    following = labels[:, 1:]
    if segment_ids is not None:
        begins = segment_ids[:, 1:] != segment_ids[:, :-1]
        following = following.masked_fill(begins, IGNORED_LABEL)
    return following
