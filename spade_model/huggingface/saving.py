"""A Hugging Face folder but for its weights: configuration, generation settings, code."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GenerationConfig

from spade_model.config import SpadeConfig
from spade_model.huggingface.configuration import SpadePretrainedConfig
from spade_model.huggingface.modeling import SpadeForConditionalGeneration


def save_settings(folder: Path, config: SpadeConfig, dtype: torch.dtype) -> None:
    """Write all but the weights: configuration, generation settings, the code of the classes.

    Args:
        folder: An existing one.
        config: The architecture.
        dtype: Type of the weights outside the state-space layers, which are float32.

    Raises:
        OSError: The disk refuses.
    """
    SpadePretrainedConfig.from_spade_config(
        config, architectures=[SpadeForConditionalGeneration.__name__], dtype=dtype
    ).save_pretrained(folder)
    GenerationConfig(
        max_new_tokens=config.max_target_length_tokens,
        decoder_start_token_id=config.decoder_start_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    ).save_pretrained(folder)
