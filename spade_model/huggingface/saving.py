"""The model's part of a Hugging Face folder: weights, configuration, generation settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig

from spade_model.config import SpadeConfig
from spade_model.huggingface.configuration import SpadePretrainedConfig
from spade_model.huggingface.modeling import SpadeForConditionalGeneration

WEIGHTS = "model.safetensors"


def save_seq2seq(
    folder: Path,
    config: SpadeConfig,
    state: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write what `AutoModelForSeq2SeqLM` loads.

    Args:
        folder: An existing one.
        config: The architecture.
        state: That of `SpadeForSeq2Seq`; the output head is left out, it is the embedding.
        dtype: Type of the weights outside the state-space layers, which are float32.

    Raises:
        OSError: The disk refuses.
        safetensors.SafetensorError: The disk refuses the weights.
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
    tensors = {
        name: value.detach().contiguous().to(torch.float32 if ".state_space." in name else dtype)
        for name, value in state.items()
        if name != "lm_head.weight"
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    # safetensors writes for the owner alone, but the folder is made to be given away.
    (folder / WEIGHTS).chmod((folder / "config.json").stat().st_mode)
