"""The encoder-decoder with its tied output head: loss, logits, greedy generation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_model.activation_checkpointing import ActivationCheckpointing
from spade_model.attention.backends import check_backend
from spade_model.attention.cache import DecoderCache, DecodingCache
from spade_model.config import SpadeConfig
from spade_model.decoder import Decoder
from spade_model.initialization import initialize_parameters
from spade_model.sequence_part import SequencePart
from spade_model.stack import LongStack

IGNORED_LABEL = -100
"""Labels of this value take no part in the loss."""


@dataclass(frozen=True)
class Seq2SeqOutput:
    """What `SpadeForSeq2Seq` returns."""

    loss: Tensor | None
    """Mean cross entropy in nats over labels that are not -100, float32; None without labels."""
    logits: Tensor
    """[B, T, vocab_size]."""
    encoder_hidden_states: Tensor
    """[B, L, d_model]."""


class SpadeModel(nn.Module):
    """Encoder and decoder around one token embedding, or an encoder alone.

    Weights are drawn as the modules of torch draw them; `SpadeForSeq2Seq` draws those that
    pretraining starts from.

    Raises:
        ValueError: The configuration is that of a causal language model.
    """

    decoder: Decoder | None

    def __init__(self, config: SpadeConfig) -> None:
        super().__init__()
        if config.is_causal_lm:
            raise ValueError(
                "num_encoder_layers=0 makes a causal language model; build it with "
                "SpadeForCausalLM, or give the encoder layers"
            )
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = LongStack(config, causal=False)
        self.decoder = Decoder(config) if config.num_decoder_layers else None

    def set_activation_checkpointing(self, chosen: ActivationCheckpointing) -> None:
        """Choose what the layers keep while training and what they compute again."""
        self.encoder.activation_checkpointing = chosen
        if self.decoder is not None:
            self.decoder.activation_checkpointing = chosen

    def compile_layers(self) -> None:
        """Have torch.compile make code of each layer when it is first called."""
        for stack in (self.encoder, self.decoder):
            for layer in [] if stack is None else stack.layers:
                layer.compile()

    def set_attention_backend(self, backend: str) -> None:
        """Choose who computes the encoder's attention, see `spade_model.attention.backends`.

        Raises:
            ValueError: There is no such backend.
        """
        self.encoder.attention_backend = check_backend(backend)

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        part: SequencePart | None = None,
    ) -> Tensor:
        """Return the encoder's output [B, L, d_model]; arguments as of `LongStack.forward`."""
        hidden: Tensor = self.encoder(
            self.shared(input_ids), attention_mask, segment_ids, part=part
        )
        return hidden

    def decode(
        self,
        decoder_input_ids: Tensor,
        encoder_hidden_states: Tensor,
        *,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        cache: DecodingCache | None = None,
        part: SequencePart | None = None,
    ) -> Tensor:
        """Return the decoder's output [B, T, d_model]; arguments as of `Decoder.forward`.

        Raises:
            ValueError: There is no decoder.
        """
        if self.decoder is None:
            raise ValueError("num_decoder_layers=0 leaves no decoder; only encode() is possible")
        hidden: Tensor = self.decoder(
            self.shared(decoder_input_ids),
            encoder_hidden_states,
            attention_mask=attention_mask,
            decoder_attention_mask=decoder_attention_mask,
            cache=cache,
            part=part,
        )
        return hidden


def shift_right(labels: Tensor, config: SpadeConfig) -> Tensor:
    """Return decoder inputs for labels [B, T]: the start token, then all labels but the last.

    Ignored labels become `pad_token_id`.
    """
    shifted = labels.roll(1, dims=1)
    shifted[:, 0] = config.decoder_start_token_id
    return shifted.masked_fill(shifted == IGNORED_LABEL, config.pad_token_id)


class SpadeForSeq2Seq(nn.Module):
    """SPADE with a language-model head, the module that is pretrained.

    Parameters are float32 and drawn from torch's generator while constructing, so the same
    `torch.manual_seed` gives the same weights. Train in bfloat16 under `torch.autocast`.

    Raises:
        ValueError: The configuration is not that of an encoder-decoder.
    """

    def __init__(self, config: SpadeConfig) -> None:
        super().__init__()
        self.config = config
        if not config.is_encoder_decoder:
            raise ValueError(
                f"num_encoder_layers={config.num_encoder_layers} and num_decoder_layers="
                f"{config.num_decoder_layers} make no encoder-decoder; give both stacks layers"
            )
        self.model = SpadeModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.lm_head.weight = self.model.shared.weight
        initialize_parameters(self.model, config, tokens=self.model.shared)

    def set_activation_checkpointing(self, chosen: ActivationCheckpointing) -> None:
        """See `SpadeModel.set_activation_checkpointing`."""
        self.model.set_activation_checkpointing(chosen)

    def compile_layers(self) -> None:
        """See `SpadeModel.compile_layers`."""
        self.model.compile_layers()

    def set_attention_backend(self, backend: str) -> None:
        """See `SpadeModel.set_attention_backend`."""
        self.model.set_attention_backend(backend)

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        part: SequencePart | None = None,
    ) -> Tensor:
        """Return the encoder's output.

        Args:
            input_ids: int64 [B, L].
            attention_mask: Bool [B, L], False where padded, or None if nothing is.
            segment_ids: int64 [B, L], the document of each token of packed rows, or None.
            part: Whoever holds the rest of the sequences, if these are a part of them, or None; see
                `spade_model.context_parallel.part`.

        Returns:
            [B, L, d_model].
        """
        return self.model.encode(input_ids, attention_mask, segment_ids, part)

    def decode(
        self,
        decoder_input_ids: Tensor,
        encoder_hidden_states: Tensor,
        *,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        cache: DecodingCache | None = None,
        part: SequencePart | None = None,
    ) -> Tensor:
        """Return the logits of the token behind each decoder input.

        Args:
            decoder_input_ids: int64 [B, T]; with a cache, only those not decoded before.
            encoder_hidden_states: [B, L, d_model].
            attention_mask: Of the encoder's tokens, bool [B, L] or None.
            decoder_attention_mask: Of cached and new decoder tokens, bool [B, past + T] or None.
            cache: Extended in place, or None.
            part: As of `encode`, if the encoder's output and mask are those of a part.

        Returns:
            [B, T, vocab_size].
        """
        hidden = self.model.decode(
            decoder_input_ids,
            encoder_hidden_states,
            attention_mask=attention_mask,
            decoder_attention_mask=decoder_attention_mask,
            cache=cache,
            part=part,
        )
        logits: Tensor = self.lm_head(hidden)
        return logits

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        part: SequencePart | None = None,
    ) -> Seq2SeqOutput:
        """Encode, decode, and compare with labels if there are any.

        Args:
            input_ids: int64 [B, L].
            labels: int64 [B, T], -100 where ignored.
            attention_mask: Of the input, bool [B, L], False where padded, or None.
            decoder_input_ids: int64 [B, T]; by default the labels shifted right.
            decoder_attention_mask: Bool [B, T] or None.
            segment_ids: Of the input, int64 [B, L]: documents of packed rows, which do not meet
                in the encoder, or None.
            part: As of `encode`, if all about the input is that of a part; all about the target is
                the same for all parts, and so are logits and loss.

        Raises:
            ValueError: Neither labels nor decoder inputs were given, or the target is too long.
        """
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("labels and decoder_input_ids are both missing; give one of them")
            decoder_input_ids = shift_right(labels, self.config)
        encoder_hidden_states = self.encode(input_ids, attention_mask, segment_ids, part)
        logits = self.decode(
            decoder_input_ids,
            encoder_hidden_states,
            attention_mask=attention_mask,
            decoder_attention_mask=decoder_attention_mask,
            part=part,
        )
        loss = None if labels is None else cross_entropy(logits, labels)
        return Seq2SeqOutput(loss, logits, encoder_hidden_states)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        max_new_tokens: int,
        part: SequencePart | None = None,
    ) -> Tensor:
        """Generate greedily, one token a step, with cached keys and values.

        Args:
            input_ids: int64 [B, L].
            attention_mask: Of the input, bool [B, L] or None.
            max_new_tokens: Longest output, at most `max_target_length_tokens`.
            part: As of `encode`; the output is the same for all parts.

        Returns:
            int64 [B, T] with T at most `max_new_tokens`, without the start token: each row up to
            and with its first `eos_token_id`, then `pad_token_id`.

        Raises:
            ValueError: `max_new_tokens` is below 1 or above `max_target_length_tokens`.
        """
        if not 1 <= max_new_tokens <= self.config.max_target_length_tokens:
            raise ValueError(
                f"max_new_tokens={max_new_tokens} is not within 1 and max_target_length_tokens="
                f"{self.config.max_target_length_tokens}; choose a length in between"
            )
        encoder_hidden_states = self.encode(input_ids, attention_mask, part=part)
        cache = DecoderCache()
        token = input_ids.new_full((input_ids.shape[0], 1), self.config.decoder_start_token_id)
        finished = torch.zeros_like(token, dtype=torch.bool)
        generated = []
        for _ in range(max_new_tokens):
            logits = self.decode(
                token,
                encoder_hidden_states,
                attention_mask=attention_mask,
                cache=cache,
                part=part,
            )
            token = logits.argmax(dim=-1).masked_fill(finished, self.config.pad_token_id)
            generated.append(token)
            finished = finished | (token == self.config.eos_token_id)
            if bool(finished.all()):
                break
        return torch.cat(generated, dim=1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy over labels that are not -100, in float32 at least.

    Args:
        logits: [B, T, V].
        labels: int64 [B, T].

    Returns:
        A scalar; 0 if every label is ignored.
    """
    total, count = summed_cross_entropy(logits, labels)
    return total / count.clamp(min=1)


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum that `cross_entropy` is the mean of, and the number of labels, both scalars.

    Args:
        logits: [B, T, V].
        labels: int64 [B, T].
    """
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = functional.cross_entropy(
        precise.flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
    )
    return total, (labels != IGNORED_LABEL).sum()
