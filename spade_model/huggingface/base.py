"""What all `transformers` classes of SPADE share: loading, precision, initial weights.

Nothing is computed here that `spade_model` computes: these classes own the same modules under the
same names, so that their state dict is the plain one (`model.…`, `lm_head.weight`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as guarded_initialization
from transformers.modeling_outputs import BaseModelOutput

from spade_model.causal_lm import SpadeCausalModel
from spade_model.causal_lm import SpadeForCausalLM as PlainCausalLM
from spade_model.huggingface.configuration import SpadePretrainedConfig
from spade_model.huggingface.layers import with_checkpointing_layers
from spade_model.initialization import initialize_parameters
from spade_model.recording import StackRecord
from spade_model.seq2seq import SpadeForSeq2Seq, SpadeModel
from spade_model.sequence_part import SequencePart
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
        return with_checkpointing_layers(PlainCausalLM(plain).model)
    if plain.is_encoder_decoder:
        return with_checkpointing_layers(SpadeForSeq2Seq(plain).model)
    encoder = SpadeModel(plain)
    initialize_parameters(encoder, plain, tokens=encoder.shared)
    return with_checkpointing_layers(encoder)


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


def asked_record(
    config: SpadePretrainedConfig,
    output_hidden_states: bool | None,
    output_attentions: bool | None,
    *,
    crosses: bool = False,
) -> StackRecord:
    """Return the record of what a caller, or else the configuration, asks for.

    Args:
        config: Of the model.
        output_hidden_states: Whether hidden states are wanted; None leaves it to the configuration.
        output_attentions: Likewise of attention weights.
        crosses: Whether the stack attends to another one.
    """
    if output_hidden_states is None:
        output_hidden_states = config.output_hidden_states
    if output_attentions is None:
        output_attentions = config.output_attentions
    return StackRecord(
        hidden_states=[] if output_hidden_states else None,
        attention_weights=[] if output_attentions else None,
        cross_attention_weights=[] if output_attentions and crosses else None,
    )


def recorded(tensors: list[Tensor] | None) -> tuple[Tensor, ...] | None:
    """Return a list of a record as outputs have it."""
    return None if tensors is None else tuple(tensors)


class SpadeEncoderView(nn.Module):
    """Embedding and encoder of a network as one module, which `generate` calls by itself.

    Owns nothing new: the modules are those of the network it was made from.
    """

    main_input_name = "input_ids"

    def __init__(
        self, shared: nn.Embedding, encoder: LongStack, config: SpadePretrainedConfig
    ) -> None:
        super().__init__()
        self.shared = shared
        self.encoder = encoder
        self.config = config

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        part: SequencePart | None = None,
        **_: Any,
    ) -> BaseModelOutput:
        """Encode ids [B, L] or embeddings [B, L, d_model] to [B, L, d_model].

        Args:
            input_ids: int64 [B, L].
            attention_mask: [B, L], 0 where padded. Padding may be on either side.
            inputs_embeds: [B, L, d_model] instead of `input_ids`.
            output_hidden_states: Whether to return what is between the layers as well; by default
                what the configuration says.
            output_attentions: Whether to return attention weights [B, H, L, L] as well, which
                costs memory quadratic in the length; by default what the configuration says.
            part: As of `LongStack.forward`.

        Raises:
            ValueError: Both or neither of the inputs were given, or attention weights of a part.
        """
        record = asked_record(self.config, output_hidden_states, output_attentions)
        embeddings = embed(self.shared, input_ids, inputs_embeds)
        hidden = self.encoder(embeddings, attention_mask, record=record, part=part)
        return BaseModelOutput(
            last_hidden_state=hidden,
            hidden_states=recorded(record.hidden_states),
            attentions=recorded(record.attention_weights),
        )


class SpadeBase(PreTrainedModel):
    """What all SPADE models share: loading, precision, initial weights, checkpointing."""

    config: SpadePretrainedConfig
    config_class = SpadePretrainedConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["SpadeLongLayer", "SpadeDecoderLayer"]  # noqa: RUF012
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

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether layers are computed again in the backward pass."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    def _uses_cache(self, use_cache: bool, given: object | None) -> bool:
        """Whether a forward pass is to make a cache; none while layers are computed again.

        Args:
            use_cache: Whether one is wanted.
            given: The cache that was given, or None.

        Raises:
            ValueError: One was given though layers are computed again, which would fill it twice.
        """
        if not (self.training and self.is_activation_checkpointing):
            return use_cache and given is None
        if given is not None:
            raise ValueError(
                "past_key_values cannot be used while training with activation checkpointing, "
                "which computes layers twice; leave it out or call eval()"
            )
        return False

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """Return a callable view of embedding and encoder.

        Args:
            modality: What is encoded; of anything but text there is no encoder.

        Returns:
            The view, or this model itself where there is no such encoder, as `transformers` wants.
        """
        network = self._network()
        if modality not in (None, "text") or not hasattr(network, "encoder"):
            return self
        return SpadeEncoderView(network.shared, network.encoder, self.config)

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding, shared by encoder, decoder and output head."""
        embedding: nn.Module = self._network().shared
        return embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self._network().shared = value
