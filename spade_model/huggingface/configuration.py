"""`SpadeConfig` in the shape `transformers` wants a configuration to have."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, Final

from transformers import PreTrainedConfig

from spade_model.config import SpadeConfig

# `transformers` builds configurations without arguments to find out what differs from the
# defaults, so that here the vocabulary needs one: T5's.
_DEFAULTS: Final = {"vocab_size": 32128}


class SpadePretrainedConfig(PreTrainedConfig):
    """What `config.json` of an exported checkpoint holds.

    All fields of `spade_model.config.SpadeConfig`, documented there, with the same names and
    defaults, and those of `transformers`. Values are checked when a model is built.

    Raises:
        ValueError: `tie_word_embeddings` is false; SPADE has no weights for a head of its own.
    """

    model_type = "spade"
    keys_to_ignore_at_inference = ("past_key_values",)
    attribute_map = {  # noqa: RUF012 - the base class fixes the type
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_encoder_layers",
    }

    # Not a dataclass with fields spelled out: early 5.x would not fill them in.
    def __init__(self, *, use_cache: bool = True, **kwargs: Any) -> None:
        if not kwargs.pop("tie_word_embeddings", True):
            raise ValueError(
                "tie_word_embeddings=False is not possible with SPADE, whose output head is the "
                "token embedding; leave it out"
            )
        self.use_cache = use_cache
        for field in dataclasses.fields(SpadeConfig):
            value = kwargs.pop(field.name, _DEFAULTS.get(field.name, field.default))
            if field.name.endswith("_token_id"):
                kwargs[field.name] = value  # the base class has these as well
            else:
                # JSON has no tuples.
                setattr(self, field.name, tuple(value) if isinstance(value, list) else value)
        kwargs["is_encoder_decoder"] = self.num_encoder_layers > 0 and self.num_decoder_layers > 0
        super().__init__(tie_word_embeddings=True, **kwargs)

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

        Raises:
            ValueError: A value is impossible; the message names field, value and remedy.
        """
        names = [field.name for field in dataclasses.fields(SpadeConfig)]
        return SpadeConfig.from_dict({name: getattr(self, name) for name in names})

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
        if not decoder or encoder:
            return self
        view = copy.deepcopy(self)
        view.num_encoder_layers = self.num_decoder_layers
        return view
