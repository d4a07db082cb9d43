"""Named architectures: what the publication states, and what we recommend.

`SpadeConfig` without arguments is a small model with our choices. The presets add sizes; every
field may be overridden.
"""

from __future__ import annotations

from typing import Any, Final

from spade_model.config import SpadeConfig
from spade_model.config_checks import nearest_name

_PUBLISHED_CHOICES: Final[dict[str, Any]] = {
    "state_space": "s4",
    "state_space_layers": 1,
    "state_dim": 64,
    "dt_min": 1e-3,
    "dt_max": 1e-1,
    "trainable_state_space": ("C", "D", "log_dt"),
    "combine": "concat",
    "attention": "window",
    "local_radius_tokens": 128,
    "position": "relative_bias",
    "decoder_position": "learned",
    "normalization": "post",
    "norm": "layer_norm",
    "norm_epsilon": 1e-6,
    "final_norm": False,
    "feed_forward": "relu",
    "feed_forward_bias": True,
    "initialization": "published",
    "dropout": 0.1,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}

PRESETS: Final[dict[str, dict[str, Any]]] = {
    # The configuration defaults of the published encoder-decoder (mt-dnn, msrlongt5) at the width
    # that its default of 768 state-space copies is for. Layers, heads and inner width, which are
    # not published for it, are those of T5 at that width.
    "spade_base_msr": {
        **_PUBLISHED_CHOICES,
        "d_model": 768,
        "num_heads": 12,
        "head_dim": 64,
        "d_ff": 3072,
        "num_encoder_layers": 12,
        "num_decoder_layers": 12,
        "state_space_copies": 768,
    },
    # Ours: pre-norm with a final norm, no biases, initial weights for AdamW and a tied head, time
    # steps that reach as far as the trained length.
    "spade_small": {},
    "spade_base": {
        "d_model": 768,
        "num_heads": 12,
        "d_ff": 3072,
        "num_encoder_layers": 12,
        "num_decoder_layers": 12,
    },
    "spade_large": {
        "d_model": 1024,
        "num_heads": 16,
        "d_ff": 4096,
        "num_encoder_layers": 24,
        "num_decoder_layers": 24,
    },
}
"""Fields by name, without `vocab_size`."""


def preset(name: str, *, vocab_size: int, **changes: Any) -> SpadeConfig:
    """Return a named architecture.

    Args:
        name: A key of `PRESETS`.
        vocab_size: Rows of the token embedding.
        changes: Fields to override.

    Raises:
        ValueError: There is no such preset (the nearest one is named), or a value is impossible.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: {nearest_name(name, PRESETS)}")
    return SpadeConfig(vocab_size=vocab_size, **{**PRESETS[name], **changes})
