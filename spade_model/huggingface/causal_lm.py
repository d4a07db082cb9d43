"""The causal language model of `spade_model` as a `transformers` model."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import Cache, GenerationConfig, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from spade_model.causal_lm import SpadeCausalModel, next_token_loss, predicted_labels
from spade_model.huggingface.base import (
    SpadeBase,
    asked_record,
    build_network,
    embed,
    recorded,
)
from spade_model.huggingface.configuration import SpadePretrainedConfig
from spade_model.huggingface.generation_cache import SpadeCache
from spade_model.seq2seq import IGNORED_LABEL, cross_entropy


class SpadeForCausalLM(SpadeBase, GenerationMixin):
    """SPADE as a language model with its tied output head; generates in constant memory.

    Prompts are best padded on the left, as `transformers` wants it: generation continues after the
    last position of a row. Positions are relative, so padding changes nothing else.

    Raises:
        ValueError: The configuration has an encoder.
    """

    _tied_weights_keys = {"lm_head.weight": "model.shared.weight"}  # noqa: RUF012
    # The Trainer counts labels over all accumulated batches and passes the number.
    accepts_loss_kwargs = True
    # The cache holds a recurrent state: no rolling back, hence no assisted generation.
    _is_stateful = True

    def __init__(self, config: SpadePretrainedConfig) -> None:
        super().__init__(config)
        network = build_network(config)
        if not isinstance(network, SpadeCausalModel):
            raise ValueError(
                f"num_encoder_layers={config.num_encoder_layers} makes no causal language model; "
                "use 0, or load the checkpoint with AutoModelForSeq2SeqLM"
            )
        self.model = network
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self._finish()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        segment_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,  # Taken by the decorator; tools read signatures.
    ) -> CausalLMOutputWithPast:
        """Compute the logits of the token after each one, and the loss if there are labels.

        Args:
            input_ids: int64 [B, T]; with a cache, only those it has not taken in.
            attention_mask: [B, past + T], 0 where padded. What it says of the tokens before has
                been said already, and is not read again.
            past_key_values: A `SpadeCache`, extended in place.
            inputs_embeds: [B, T, d_model] instead of `input_ids`.
            labels: int64 [B, T], -100 where ignored: the input ids, not shifted.
            use_cache: Whether to return a cache; by default what the configuration says, and not
                while there are labels.
            segment_ids: int64 [B, T]: documents of packed rows, which do not meet; without a cache.
            logits_to_keep: How many of the last logits to compute, 0 means all; or their places,
                int64 [P].
            output_hidden_states: Whether to return what is between the layers as well; by default
                what the configuration says.
            output_attentions: Whether to return attention weights [B, H, T, past + T] as well, 0
                outside the window; by default what the configuration says.
            shift_labels: int64 [B, T], what each token is to predict, -100 where ignored: replaces
                `labels` where rows are cut over several devices.
            num_items_in_batch: Number of labels by which to divide the summed loss, for gradient
                accumulation; by default those of this batch.
            return_dict: Whether to return an object instead of a tuple.

        Raises:
            ValueError: An input is missing or given twice, the cache is of an unsupported kind, or
                the mask is of another length.
        """
        embeddings = embed(self.model.shared, input_ids, inputs_embeds)
        if use_cache is None:
            use_cache = self.config.use_cache and labels is None and segment_ids is None
        if self._uses_cache(use_cache, past_key_values):
            past_key_values = self._new_cache()
        memory = None if past_key_values is None else _memory(past_key_values)
        if attention_mask is not None:
            past = 0 if memory is None else memory.num_tokens
            attention_mask = _mask_of_new_tokens(attention_mask, past, embeddings.shape[1])
        record = asked_record(self.config, output_hidden_states, output_attentions)
        hidden = self.model.decoder(embeddings, attention_mask, segment_ids, memory, record)
        places = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, places])
        loss = None
        if shift_labels is not None:
            loss = cross_entropy(logits, shift_labels)
        elif labels is not None:
            loss = next_token_loss(logits, labels, segment_ids)
            shift_labels = predicted_labels(labels, segment_ids)
        if loss is not None and shift_labels is not None and num_items_in_batch is not None:
            loss = loss * (shift_labels != IGNORED_LABEL).sum() / num_items_in_batch
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=past_key_values,
            hidden_states=recorded(record.hidden_states),
            attentions=recorded(record.attention_weights),
        )

    def _new_cache(self) -> SpadeCache:
        return SpadeCache(self.config.to_spade_config())

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """Say to `generate` that a cache of keys and values alone will not do."""
        return False

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        *_arguments: Any,
        **_options: Any,
    ) -> None:
        """Give `generate` our cache where it would make its own."""
        kind = generation_config.cache_implementation
        if kind not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation={kind!r} is not supported by SPADE, whose cache is small "
                "already; leave it out"
            )
        given = model_kwargs.get("past_key_values") is not None
        if generation_config.use_cache is not False and not given:
            model_kwargs["past_key_values"] = self._new_cache()

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Return the arguments of one step of `generate`, which takes embeddings as well.

        Args:
            input_ids: int64 [B, T], all tokens so far.
            inputs_embeds: Of a prompt, [B, L, d_model].
            kwargs: The other arguments of `forward`, and where generation is.
        """
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        # Positions are relative, and the cache knows where it is.
        for name in ("cache_position", "position_ids"):
            inputs.pop(name, None)
        return inputs


def _memory(cache: Cache) -> Any:
    if isinstance(cache, SpadeCache):
        return cache.memory
    raise ValueError(
        f"past_key_values is a {type(cache).__name__}, which has no room for the state of a state "
        "space; leave it out, or give a SpadeCache"
    )


def _mask_of_new_tokens(attention_mask: Tensor, past: int, length: int) -> Tensor:
    covered = attention_mask.shape[1]
    if covered != past + length:
        raise ValueError(
            f"attention_mask covers {covered} tokens but there are {past + length}; "
            "give one value for each cached and each new token"
        )
    return attention_mask[:, past:]
