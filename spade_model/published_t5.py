"""Weights and configuration of T5 and LongT5, translated into ours (arXiv 1910.10683, 2112.07916).

What they compute, a SPADE without state spaces computes as well: RMS norms in front of each
sublayer and behind each stack, none on the embeddings, one table of relative biases for the encoder
and one for the decoder. Three conventions differ and go into the weights: T5 does not scale scores,
so that the queries' projection takes the scale of ours away; it may scale the decoder's output,
which becomes a part of the final norm; LongT5 names its attention otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from spade_model.config import SpadeConfig
from spade_model.config_checks import nearest_name
from spade_model.published import decoder_state, encoder_state, prefixed, under

SPADES_OWN = (
    "state_space",
    "state_space_layers",
    "state_space_discretization",
    "state_space_channels",
    "state_dim",
    "state_space_copies",
    "dt_min",
    "dt_max",
    "trainable_state_space",
    "combine",
    "combine_weight",
    "attention",
    "local_radius_tokens",
    "trained_length_tokens",
    "max_target_length_tokens",
    "dropout",
)
"""Fields of `SpadeConfig` that T5 leaves open."""

_ENCODER_ATTENTIONS = ("LocalSelfAttention", "TransientGlobalSelfAttention")


def t5_config(theirs: Mapping[str, Any], own: Mapping[str, Any]) -> SpadeConfig:
    """Translate a configuration.

    Args:
        theirs: Of `transformers`, whole.
        own: Fields out of `SPADES_OWN`; what is left out has our default, but LongT5's radius and
            T5's dropout.

    Raises:
        ValueError: T5 has something that SPADE does not, or a field is unknown or not open.
    """
    for name in own:
        if name not in SPADES_OWN:
            raise ValueError(
                f"{name} cannot be chosen, the weights decide it: {nearest_name(name, SPADES_OWN)}"
            )
    kinds = {"relu": "relu", "gated-gelu": "gated_gelu"}
    kind = theirs["feed_forward_proj"]
    if kind not in kinds:
        raise ValueError(
            f"feed_forward_proj is {kind!r}, which SPADE does not have; only relu and gated-gelu "
            "are imported"
        )
    values = {
        "vocab_size": theirs["vocab_size"],
        "d_model": theirs["d_model"],
        "num_heads": theirs["num_heads"],
        "head_dim": theirs["d_kv"],
        "d_ff": theirs["d_ff"],
        "num_encoder_layers": theirs["num_layers"],
        "num_decoder_layers": theirs["num_decoder_layers"],
        "shared_relative_bias": True,
        "relative_attention_num_buckets": theirs["relative_attention_num_buckets"],
        "relative_attention_max_distance_tokens": theirs["relative_attention_max_distance"],
        "decoder_position": "relative_bias",
        "norm": "rms_norm",
        "norm_epsilon": theirs["layer_norm_epsilon"],
        "embedding_norm": False,
        "feed_forward": kinds[kind],
        "local_radius_tokens": theirs.get("local_radius", 127),
        "dropout": theirs["dropout_rate"],
        "pad_token_id": _first(theirs.get("pad_token_id"), 0),
        "eos_token_id": _first(theirs.get("eos_token_id"), 1),
        "decoder_start_token_id": _first(theirs.get("decoder_start_token_id"), 0),
    }
    return SpadeConfig.from_dict({**values, **own})


def t5_state(
    theirs: Mapping[str, Tensor], config: SpadeConfig, *, scales_output: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """Translate a state.

    Args:
        theirs: Of an encoder-decoder of `transformers`.
        config: From `t5_config`.
        scales_output: Whether the decoder's output is multiplied by ``d_model ** -0.5``.

    Returns:
        A part of the names of ``SpadeForSeq2Seq(config).state_dict()``: all but what state spaces
        bring, with the head as ``lm_head.weight``; and the names of tensors without a place.
    """
    stacks = {}
    for name, x in theirs.items():
        for attention in _ENCODER_ATTENTIONS:
            name = name.replace(f".{attention}.", ".SelfAttention.")
        is_query = name.endswith("Attention.q.weight")
        stacks[name] = x * config.head_dim**0.5 if is_query else x
    decoder = under("decoder.", stacks)
    ours = {
        "model.shared.weight": theirs["shared.weight"],
        "lm_head.weight": theirs.get("lm_head.weight", theirs["shared.weight"]),
        **prefixed("model.encoder.", encoder_state(under("encoder.", stacks), config)),
        **prefixed("model.decoder.", decoder_state(decoder, config)),
    }
    table = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    ours["model.decoder.relative_attention_bias.weight"] = decoder[table]
    if scales_output:
        norm = "model.decoder.final_norm.weight"
        ours[norm] = ours[norm] * config.d_model**-0.5
    left_out = [name for name in theirs if ".global_" in name]
    return ours, left_out


def _first(token: Any, default: int) -> Any:
    if isinstance(token, (list, tuple)):
        token = token[0] if token else None
    return default if token is None else token
