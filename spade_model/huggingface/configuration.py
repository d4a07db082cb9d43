"""`SpadeConfig` in the shape `transformers` wants a configuration to have."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from transformers import PreTrainedConfig

from spade_model.config import SpadeConfig
from spade_model.huggingface.adapters import name_lora_targets

# `transformers` builds configurations without arguments to find out what differs from the
# defaults, so that here the vocabulary needs one: T5's.
_DEFAULTS: Final = {"vocab_size": 32128}


class SpadePretrainedConfig(PreTrainedConfig):
    """What `config.json` of an exported checkpoint holds.

    All fields of `spade_model.config.SpadeConfig`, documented there, with the same names and
    defaults, and those of `transformers`. Values are checked when a model is built. The output head
    is the token embedding, as in pretraining, unless `tie_word_embeddings` is false: then it has
    weights of its own, which only these classes know.
    """

    model_type = "spade"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - the Trainer adds a list
    attribute_map = {  # noqa: RUF012 - the base class fixes the type
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "intermediate_size": "d_ff",
    }
    write_code: ClassVar[Callable[[SpadePretrainedConfig, Path], None] | None] = None
    """Completes a folder with the code of the classes. Set by our package; classes that were
    loaded from such a folder leave it to `transformers` to copy their code."""

    if TYPE_CHECKING:  # Annotations here would become fields of a dataclass.
        num_encoder_layers: int
        num_decoder_layers: int

    # Not a dataclass with fields spelled out: early 5.x would not fill them in.
    def __init__(
        self, *, use_cache: bool = True, tie_word_embeddings: bool = True, **kwargs: Any
    ) -> None:
        self.use_cache = use_cache
        # Read without asking by those who generate without a prompt; there is none by default.
        kwargs.setdefault("bos_token_id", None)
        if "num_hidden_layers" in kwargs:  # Said of the whole model, it is meant of both stacks.
            kwargs.setdefault("num_decoder_layers", kwargs["num_hidden_layers"])
        for field in dataclasses.fields(SpadeConfig):
            value = kwargs.pop(field.name, _DEFAULTS.get(field.name, field.default))
            if field.name.endswith("_token_id"):
                kwargs[field.name] = value  # the base class has these as well
            else:
                # JSON has no tuples.
                setattr(self, field.name, tuple(value) if isinstance(value, list) else value)
        kwargs["is_encoder_decoder"] = self.num_encoder_layers > 0 and self.num_decoder_layers > 0
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the encoder, or of a causal language model."""
        return self.num_encoder_layers or self.num_decoder_layers

    @num_hidden_layers.setter
    def num_hidden_layers(self, value: int) -> None:
        if self.num_encoder_layers:
            self.num_encoder_layers = value
        else:
            self.num_decoder_layers = value

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write ``config.json`` as `transformers` does, and the code of the classes beside it.

        Saving a model comes here too. The folder then loads where this package is not installed.

        Args:
            save_directory: Made if it is absent.
            kwargs: See there.
        """
        if self.write_code is not None:
            self.write_code(Path(save_directory))
        super().save_pretrained(save_directory, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; PEFT asks for them when it wraps a model."""
        name_lora_targets(self.model_type)
        fields: dict[str, Any] = super().to_dict()
        return fields

    @classmethod
    def from_spade_config(cls, config: SpadeConfig, **kwargs: Any) -> SpadePretrainedConfig:
        """Wrap a plain configuration.

        Args:
            config: The architecture.
            kwargs: Fields of `transformers` alone, such as `num_labels`.
        """
        return cls(**config.to_dict(), **kwargs)

    def to_spade_config(self) -> SpadeConfig:
        """Return the plain configuration.

        The plain model knows one id for each special token. Of several ids it gets the first, and
        for None its own default, which only its own `generate` would use.

        Raises:
            ValueError: A value is impossible; the message names field, value and remedy.
        """
        values = {}
        for field in dataclasses.fields(SpadeConfig):
            value = getattr(self, field.name)
            if field.name.endswith("_token_id"):
                value = value[0] if isinstance(value, (list, tuple)) else value
                value = field.default if value is None else value
            values[field.name] = value
        return SpadeConfig.from_dict(values)

    def get_text_config(
        self, decoder: bool | None = None, encoder: bool | None = None
    ) -> SpadePretrainedConfig:
        """Return the configuration of one of the two stacks.

        Generation caches ask the decoder for `num_hidden_layers`, which otherwise means the
        encoder's.

        Args:
            decoder: Whether the decoder is meant.
            encoder: Whether the encoder is meant; both or neither mean the whole model.
        """
        if not decoder or encoder or not self.is_encoder_decoder:
            return self
        view = copy.deepcopy(self)
        view.num_encoder_layers = self.num_decoder_layers
        return view

    def for_encoder(self) -> SpadePretrainedConfig:
        """Return the configuration of the encoder alone, for models that leave out the decoder.

        What they save is then a folder without a decoder, and says so.
        """
        if not self.is_encoder_decoder:
            return self
        encoder = copy.deepcopy(self)
        encoder.num_decoder_layers, encoder.is_encoder_decoder = 0, False
        return encoder
