"""Small models, ids and masks for the tests of the `transformers` classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spade_model.huggingface import SpadePretrainedConfig

TINY: dict[str, Any] = {
    "vocab_size": 90,
    "d_model": 32,
    "num_heads": 2,
    "head_dim": 12,
    "d_ff": 48,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "state_dim": 8,
    "local_radius_tokens": 7,
    "max_target_length_tokens": 40,
}
CAUSAL: dict[str, Any] = TINY | {"num_encoder_layers": 0}


def tiny_config(**changes: Any) -> SpadePretrainedConfig:
    """An encoder-decoder unless changed."""
    return SpadePretrainedConfig(**(TINY | changes))


def built(model_class: Any, **changes: Any) -> Any:
    """A model with the same weights at every call, in evaluation."""
    torch.manual_seed(5)
    return model_class(tiny_config(**changes)).eval()


def checkpoint_activations(model: Any, *options: Any) -> None:
    """Have a model compute its layers again; early 5.x has only the older name."""
    older = model.gradient_checkpointing_enable
    getattr(model, "activation_checkpointing_enable", older)(*options)


def some_ids(rows: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, TINY["vocab_size"], (rows, length), generator=generator)


def ragged(lengths: list[int], side: str) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Padded ids and mask, and the rows they came from."""
    rows = [some_ids(1, length, seed) for seed, length in enumerate(lengths)]
    ids = torch.zeros(len(rows), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        place = slice(0, row.shape[1]) if side == "right" else slice(-row.shape[1], None)
        ids[index, place], mask[index, place] = row[0], 1
    return ids, mask, rows
