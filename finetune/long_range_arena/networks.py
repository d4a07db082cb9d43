"""Networks for the tasks: encoders of a few layers, with new weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

from finetune.errors import FinetuneError
from finetune.long_range_arena.data import TaskName
from finetune.long_range_arena.vocabulary import END_ID, PAD_ID, VOCABULARY_SIZES
from spade_model.huggingface import SpadePretrainedConfig

Size = Literal["small", "published"]

_HEAD_DIM = 16
_SMALL: Final = {
    "d_model": 64,
    "num_heads": 4,
    "d_ff": 128,
    "num_encoder_layers": 2,
    "state_dim": 32,
    "local_radius_tokens": 31,
    "dropout": 0.0,
}
"""Learns on two CPU cores: 0.1 million parameters."""

_PUBLISHED_LAYERS_AND_WIDTHS: Final = {
    "listops": (6, 80),
    "text": (4, 128),
    "retrieval": (6, 128),
    "image": (8, 160),
    "pathfinder": (6, 128),
}
"""Of MEGA's networks for Long Range Arena (arXiv 2209.10655, ``mega_lra_*`` of its code), whose
inner width is twice the outer one. SPADE's published code has none for these tasks."""
_PUBLISHED_DROPOUT: Final = {"listops": 0.1, "text": 0.1, "retrieval": 0.1}
"""Of the same networks; none on images."""
_GIVEN_BY_THE_TASK: Final = ("vocab_size", "num_decoder_layers", "trained_length_tokens")


def network_config(
    task: TaskName, size: str, longest_tokens: int, changes: Mapping[str, Any]
) -> SpadePretrainedConfig:
    """Return the architecture for a task.

    Args:
        task: Gives the vocabulary.
        size: ``small`` or ``published``.
        longest_tokens: The longest training row; the memory of the state space is to reach so far.
        changes: Fields of `SpadeConfig` with other values.

    Raises:
        FinetuneError: The size or a field is unknown, or a value is impossible.
    """
    if size not in get_args(Size):
        raise FinetuneError(f"size is {size!r}: use {' or '.join(get_args(Size))}")
    for name in changes:
        if name in _GIVEN_BY_THE_TASK or name.endswith("_token_id"):
            raise FinetuneError(f"field {name!r} is given by the task; leave it out")
    fields = {
        **(_SMALL if size == "small" else _published(task)),
        "head_dim": _HEAD_DIM,
        "num_decoder_layers": 0,
        "vocab_size": VOCABULARY_SIZES[task],
        "trained_length_tokens": longest_tokens,
        "pad_token_id": PAD_ID,
        "eos_token_id": END_ID,
        "decoder_start_token_id": PAD_ID,
        **changes,
    }
    if fields["num_encoder_layers"] == 0:
        raise FinetuneError("field 'num_encoder_layers' is 0: use 1 or more, this is an encoder")
    plain = SpadePretrainedConfig().to_spade_config()
    try:
        return SpadePretrainedConfig.from_spade_config(plain.from_dict(fields))
    except (ValueError, TypeError) as error:
        raise FinetuneError(str(error)) from error


def _published(task: TaskName) -> dict[str, Any]:
    layers, width = _PUBLISHED_LAYERS_AND_WIDTHS[task]
    return {
        "d_model": width,
        "num_heads": width // _HEAD_DIM,
        "d_ff": 2 * width,
        "num_encoder_layers": layers,
        "state_dim": 64,
        "local_radius_tokens": 63,
        "dropout": _PUBLISHED_DROPOUT.get(task, 0.0),
    }
