"""The modules of `spade_model` as `transformers` models.

Nothing is computed here that `spade_model` computes: these classes own the same modules under the
same names, so that their state dict is the plain one (`model.…`, `lm_head.weight`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, GenerationMixin, PreTrainedModel
from transformers import initialization as guarded_initialization
from transformers.modeling_outputs import (
    BaseModelOutput,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.utils.generic import can_return_tuple

from spade_model.activation_checkpointing import ActivationCheckpointing
from spade_model.causal_lm import SpadeCausalModel, SpadeForCausalLM
from spade_model.decoder import Decoder
from spade_model.huggingface.configuration import SpadePretrainedConfig
from spade_model.huggingface.generation_cache import GenerationCache
from spade_model.initialization import initialize_parameters
from spade_model.seq2seq import (
    IGNORED_LABEL,
    SpadeForSeq2Seq,
    SpadeModel,
    cross_entropy,
    shift_right,
)
from spade_model.stack import LongStack

_INITIALIZED = "_is_hf_initialized"
"""The mark of `transformers` on tensors and modules whose values are not to be drawn again."""


def build_network(config: SpadePretrainedConfig) -> SpadeModel | SpadeCausalModel:
    """Build the plain network without a head, with the weights that pretraining starts from.

    Raises:
        ValueError: A field of the configuration is impossible.
    """
    plain = config.to_spade_config()
    if plain.is_causal_lm:
        return SpadeForCausalLM(plain).model
    if plain.is_encoder_decoder:
        return SpadeForSeq2Seq(plain).model
    encoder = SpadeModel(plain)
    initialize_parameters(encoder, plain, tokens=encoder.shared)
    return encoder


def build_encoder(config: SpadePretrainedConfig) -> SpadeModel:
    """Build a network that has an encoder.

    Raises:
        ValueError: It has none, or a field of the configuration is impossible.
    """
    network = build_network(config)
    if isinstance(network, SpadeModel):
        return network
    raise ValueError(
        "num_encoder_layers=0 makes a causal language model, which has no encoder; load it with "
        "AutoModelForCausalLM"
    )


def embed(shared: nn.Embedding, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """Return embeddings [B, L, d_model] of ids [B, L], or those that were given.

    Raises:
        ValueError: Both or neither were given.
    """
    if inputs_embeds is None and input_ids is not None:
        embeddings: Tensor = shared(input_ids)
        return embeddings
    if inputs_embeds is None or input_ids is not None:
        raise ValueError("give either input_ids or inputs_embeds")
    return inputs_embeds


class SpadeEncoderView(nn.Module):
    """Embedding and encoder of a network as one module, which `generate` calls by itself.

    Owns nothing new: the modules are those of the network it was made from.
    """

    main_input_name = "input_ids"

    def __init__(self, shared: nn.Embedding, encoder: LongStack) -> None:
        super().__init__()
        self.shared = shared
        self.encoder = encoder

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **_: Any,
    ) -> BaseModelOutput:
        """Encode ids [B, L] or embeddings [B, L, d_model] to [B, L, d_model].

        Raises:
            ValueError: Both or neither of the inputs were given.
        """
        embeddings = embed(self.shared, input_ids, inputs_embeds)
        return BaseModelOutput(last_hidden_state=self.encoder(embeddings, attention_mask))


class SpadeBase(PreTrainedModel):
    """What all SPADE models share: loading, precision, initial weights, checkpointing."""

    config: SpadePretrainedConfig
    config_class = SpadePretrainedConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["LongLayer", "DecoderLayer"]  # noqa: RUF012
    # Kernels of 16-bit state-space parameters mean nothing: one step of dt is lost in the rounding.
    _keep_in_fp32_modules_strict = ["state_space"]  # noqa: RUF012 - early 5.x adds lists to it

    def _finish(self) -> None:
        """Every constructor's last line."""
        for tensor in self._network_tensors().values():
            # Drawn by `build_network`. On the meta device there is nothing yet, and whatever a
            # checkpoint then lacks is still to be drawn.
            if tensor.device.type != "meta":
                setattr(tensor, _INITIALIZED, True)
        self.post_init()

    def _network(self) -> Any:
        """The module whose state dict is that of the plain `SpadeModel`, or a part of it."""
        return getattr(self, self.base_model_prefix)

    def _network_tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = self._network().state_dict(keep_vars=True)
        return tensors

    def initialize_weights(self) -> None:
        """Draw what a checkpoint lacks from the distribution that pretraining starts from."""
        lacking = {
            name: tensor
            for name, tensor in self._network_tensors().items()
            if not getattr(tensor, _INITIALIZED, False)
        }
        if lacking:
            drawn = build_network(self.config).state_dict()
            for name, tensor in lacking.items():
                guarded_initialization.copy_(tensor, drawn[name].to(tensor))
        for module in self._network().modules():
            setattr(module, _INITIALIZED, True)
        super().initialize_weights()

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable[..., Any] | None = None,
        every_n_layers: int = 1,
    ) -> None:
        """Switch the activation checkpointing of the plain modules, which is per layer."""
        chosen = ActivationCheckpointing("full" if enable else "none", every_n_layers)
        for module in self.modules():
            if isinstance(module, LongStack | Decoder):
                module.activation_checkpointing = chosen

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether layers are computed again in the backward pass."""
        return any(getattr(module, "activation_checkpointing", False) for module in self.modules())

    def get_encoder(self, modality: str | None = None) -> SpadeEncoderView:
        """Return a callable view of embedding and encoder."""
        network = self._network()
        return SpadeEncoderView(network.shared, network.encoder)

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding, shared by encoder, decoder and output head."""
        embedding: nn.Module = self._network().shared
        return embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self._network().shared = value


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
            return_dict: Whether to return an object instead of a tuple.

        Raises:
            ValueError: An input is missing or given twice, a cache is of an unsupported kind, or
                the target is longer than `max_target_length_tokens`.
        """
        if self.decoder is None:
            return self.get_encoder()(input_ids, attention_mask, inputs_embeds)
        if (decoder_input_ids is None) == (decoder_inputs_embeds is None):
            raise ValueError("give either decoder_input_ids or decoder_inputs_embeds")
        if encoder_outputs is None:
            encoder_outputs = self.get_encoder()(input_ids, attention_mask, inputs_embeds)
        if use_cache is None:
            use_cache = self.config.use_cache
        if use_cache and past_key_values is None:
            past_key_values = EncoderDecoderCache(
                DynamicCache(config=self.config), DynamicCache(config=self.config)
            )
        cache = None if past_key_values is None else GenerationCache(past_key_values)
        if decoder_inputs_embeds is None:
            decoder_inputs_embeds = self.shared(decoder_input_ids)
        hidden = self.decoder(
            decoder_inputs_embeds,
            encoder_outputs[0],
            attention_mask=attention_mask,
            decoder_attention_mask=decoder_attention_mask,
            cache=cache,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=hidden,
            past_key_values=past_key_values,
            encoder_last_hidden_state=encoder_outputs[0],
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
        self.lm_head.weight = self.model.shared.weight
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
        num_items_in_batch: Tensor | int | None = None,
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
            num_items_in_batch: Number of labels by which to divide the summed loss, for gradient
                accumulation; by default those of this batch.
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
            encoder_last_hidden_state=output.encoder_last_hidden_state,
        )

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the arguments of one step of `generate`."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)
        # Early 5.x passes the positions of the new tokens, which the cache knows as well.
        inputs.pop("cache_position", None)
        return inputs

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Return the labels [B, T] shifted right, which data collators ask for."""
        return shift_right(labels, self.config.to_spade_config())
