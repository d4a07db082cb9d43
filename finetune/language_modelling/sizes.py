"""New language models: a state space beside window attention at the bottom, windows above.

The architecture is that of the paper's language model (arXiv 2212.08136) with our own choices
(pre-norm, time steps that reach as far as the trained length). The sizes are those of our presets
for encoder-decoders, all layers in one stack, and one for two CPU cores.
"""

from __future__ import annotations

from typing import Any, Final

from transformers import PreTrainedTokenizerBase

from finetune.errors import FinetuneError
from spade_model.huggingface import SpadeForCausalLM, SpadePretrainedConfig

DEFAULT_DROPOUT = 0.1
SIZES: Final[dict[str, dict[str, Any]]] = {
    "tiny": {
        "d_model": 128,
        "num_heads": 4,
        "head_dim": 32,
        "d_ff": 512,
        "num_decoder_layers": 2,
        "state_dim": 32,
        "local_radius_tokens": 63,
    },
    "small": {"d_model": 512, "num_heads": 8, "d_ff": 2048, "num_decoder_layers": 6},
    "base": {"d_model": 768, "num_heads": 12, "d_ff": 3072, "num_decoder_layers": 12},
    "large": {"d_model": 1024, "num_heads": 16, "d_ff": 4096, "num_decoder_layers": 24},
}
"""Fields of the configuration by name of the size."""


def check_size(name: str) -> None:
    """Make sure that there is a size of that name.

    Raises:
        FinetuneError: There is none.
    """
    if name not in SIZES:
        raise FinetuneError(f"from_scratch is {name!r}: use {', '.join(SIZES)}")


def new_model(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length_tokens: int,
    dropout: float | None = None,
) -> SpadeForCausalLM:
    """Return a new network in float32, drawn from torch's generator.

    Args:
        name: A key of `SIZES`.
        tokenizer: Its number of ids is the vocabulary.
        length_tokens: Of the training rows; the state space's memory starts as long.
        dropout: None: `DEFAULT_DROPOUT`.
    """
    config = SpadePretrainedConfig(
        vocab_size=len(tokenizer),
        num_encoder_layers=0,
        trained_length_tokens=length_tokens,
        dropout=DEFAULT_DROPOUT if dropout is None else dropout,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        # A text begins behind the end of another one.
        bos_token_id=tokenizer.eos_token_id,
        **SIZES[name],
    )
    return SpadeForCausalLM(config)
