"""The encoder-decoder of `spade_model` as `transformers` models, with its head and without."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, GenerationMixin
from transformers.modeling_outputs import (
    BaseModelOutput,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.utils.generic import can_return_tuple

from spade_model.huggingface.base import SpadeBase, asked_record, build_encoder, recorded
from spade_model.huggingface.configuration import SpadePretrainedConfig
from spade_model.huggingface.generation_cache import GenerationCache
from spade_model.seq2seq import IGNORED_LABEL, cross_entropy, shift_right
from spade_model.sequence_part import SequencePart


class SpadePretrainedModel(SpadeBase):
    """The encoder-decoder without a head, or the encoder alone; what `AutoModel` loads.

    Without a decoder (``num_decoder_layers=0``) it returns the encoder's output.

    Raises:
        ValueError: The configuration is that of a causal language model.
    """

    def __init__(self, config: SpadePretrainedConfig) -> None:
        super().__init__(config)
        network = build_encoder(config)
        self.shared, self.encoder, self.decoder = network.shared, network.encoder, network.decoder
        self._finish()

    def _network(self) -> Any:
        return self

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[Tensor, ...] | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        part: SequencePart | None = None,
    ) -> Seq2SeqModelOutput | BaseModelOutput:
        """Encode unless that was done before, and decode if there is a decoder.

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], 0 where the input is padded. Padding may be on either side.
            decoder_input_ids: int64 [B, T]; with a cache, only those not decoded before.
            decoder_attention_mask: [B, past + T], 0 where the decoder's input is padded.
            encoder_outputs: From an earlier call, instead of the input.
            past_key_values: Keys and values of the tokens decoded before, extended in place.
            inputs_embeds: [B, L, d_model] instead of `input_ids`.
            decoder_inputs_embeds: [B, T, d_model] instead of `decoder_input_ids`.
            use_cache: Whether to return keys and values; by default what the configuration says.
            output_hidden_states: Whether to return what is between the layers as well; by default
                what the configuration says.
            output_attentions: Whether to return attention weights as well, [B, H, queries, keys],
                at a cost that is quadratic in the length; by default what the configuration says.
            part: Whoever holds the rest of the input, if all about it is that of a part, or None;
                see `spade_model.context_parallel.part`.
            return_dict: Whether to return an object instead of a tuple.

        Raises:
            ValueError: An input is missing or given twice, a cache is of an unsupported kind, or
                the target is longer than `max_target_length_tokens`.
        """
        asked = (output_hidden_states, output_attentions)
        if self.decoder is None:
            return self.get_encoder()(input_ids, attention_mask, inputs_embeds, *asked, part=part)
        if (decoder_input_ids is None) == (decoder_inputs_embeds is None):
            raise ValueError("give either decoder_input_ids or decoder_inputs_embeds")
        if encoder_outputs is None:
            encoder_outputs = self.get_encoder()(
                input_ids, attention_mask, inputs_embeds, *asked, part=part
            )
        if isinstance(encoder_outputs, BaseModelOutput):
            encoded = encoder_outputs
        else:
            encoded = BaseModelOutput(*encoder_outputs[:3])
        if use_cache is None:
            use_cache = self.config.use_cache
        if self._uses_cache(use_cache, past_key_values):
            past_key_values = EncoderDecoderCache(
                DynamicCache(config=self.config), DynamicCache(config=self.config)
            )
        cache = None if past_key_values is None else GenerationCache(past_key_values)
        if decoder_inputs_embeds is None:
            decoder_inputs_embeds = self.shared(decoder_input_ids)
        record = asked_record(self.config, *asked, crosses=True)
        hidden = self.decoder(
            decoder_inputs_embeds,
            encoded.last_hidden_state,
            attention_mask=attention_mask,
            decoder_attention_mask=decoder_attention_mask,
            cache=cache,
            record=record,
            part=part,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=hidden,
            past_key_values=past_key_values,
            decoder_hidden_states=recorded(record.hidden_states),
            decoder_attentions=recorded(record.attention_weights),
            cross_attentions=recorded(record.cross_attention_weights),
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
        )


class SpadeForConditionalGeneration(SpadeBase, GenerationMixin):
    """SPADE with its tied output head: text to text, greedy and beam search with a cache."""

    _tied_weights_keys = {"lm_head.weight": "model.shared.weight"}  # noqa: RUF012
    # The Trainer counts labels over all accumulated batches and passes the number.
    accepts_loss_kwargs = True

    def __init__(self, config: SpadePretrainedConfig) -> None:
        super().__init__(config)
        self.model = SpadePretrainedModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self._finish()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[Tensor, ...] | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        part: SequencePart | None = None,
        return_dict: bool | None = None,  # Taken by the decorator; tools read signatures.
    ) -> Seq2SeqLMOutput:
        """Compute logits [B, T, vocab_size], and the loss if there are labels.

        Args:
            input_ids: See `SpadePretrainedModel.forward`, as all that is not listed here.
            attention_mask: See there.
            decoder_input_ids: By default the labels shifted right.
            decoder_attention_mask: See there.
            encoder_outputs: See there.
            past_key_values: See there.
            inputs_embeds: See there.
            decoder_inputs_embeds: See there.
            labels: int64 [B, T], -100 where ignored.
            use_cache: By default off while there are labels.
            output_hidden_states: See there.
            output_attentions: See there.
            num_items_in_batch: Number of labels by which to divide the summed loss, for gradient
                accumulation; by default those of this batch.
            part: See there; targets, logits and loss are the same for all parts, and so is what
                `generate` returns.
            return_dict: See there.

        Raises:
            ValueError: See there.
        """
        if labels is not None:
            use_cache = bool(use_cache)
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            part=part,
            return_dict=True,
        )
        logits = self.lm_head(output.last_hidden_state)
        loss = None
        if labels is not None:
            loss = cross_entropy(logits, labels)
            if num_items_in_batch is not None:
                loss = loss * (labels != IGNORED_LABEL).sum() / num_items_in_batch
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            decoder_hidden_states=output.decoder_hidden_states,
            decoder_attentions=output.decoder_attentions,
            cross_attentions=output.cross_attentions,
            encoder_last_hidden_state=output.encoder_last_hidden_state,
            encoder_hidden_states=output.encoder_hidden_states,
            encoder_attentions=output.encoder_attentions,
        )

    @staticmethod
    def create_masks_for_generate(*, attention_mask: Tensor | None = None, **_: Any) -> Any:
        """Leave a decoder's mask [B, past + T] as it is; `generate` would add axes to it."""
        return attention_mask

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the arguments of one step of `generate`."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)
        # Early 5.x passes the positions of the new tokens, which the cache knows as well.
        positions = inputs.pop("cache_position", None)
        cache, tokens = inputs.get("past_key_values"), inputs.get("decoder_input_ids")
        begins = kwargs.get("is_first_iteration") and kwargs.get("next_sequence_length") is None
        if begins and positions is None and cache is not None and tokens is not None:
            # A cache from an earlier call comes with all tokens so far, of which `generate` leaves
            # out those of the past only if there is a mask for them.
            past = int(cache.get_seq_length())
            if tokens.shape[1] > past:
                inputs["decoder_input_ids"] = tokens[:, past:]
        return inputs

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Return the labels [B, T] shifted right, which data collators ask for."""
        return shift_right(labels, self.config.to_spade_config())
