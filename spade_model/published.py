"""Names and conventions of the published SPADE checkpoints, translated into ours.

The published encoder-decoder is `msrlongt5` of microsoft's mt-dnn repository. It is post-norm by
default, has no final norm, reserves two rows of its position table, and keeps the output matrix of
its state space in a form that depends on a length. All functions here are pure and differentiable.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spade_model.config import SpadeConfig
from spade_model.state_space.s4_kernel import discretize, real_output

RESERVED_POSITIONS = 2
"""Rows of the published position table in front of the first token's: unused, and padding."""


# The published models have the first of these alone, and T5, whose names they keep, the second.
_STACK_NORMS = {"first_layer_norm": "first_norm", "final_layer_norm": "final_norm"}


def published_config(published: Mapping[str, Any]) -> SpadeConfig:
    """Translate the configuration of a published model.

    Args:
        published: Its `config.json`. Missing keys mean the defaults of the published code.

    Returns:
        A configuration that computes the same function, with the state space as the publication
        trains it: C, D and log_dt learned, A, B and P fixed.

    Raises:
        ValueError: `vocab_size` is missing, the feed-forward kind is unknown, or the sizes do not
            fit together.
    """
    if "vocab_size" not in published:
        raise ValueError("vocab_size is missing in the published configuration; add it")
    kind = published.get("feed_forward_proj", "relu")
    if kind not in ("relu", "gated-gelu"):
        raise ValueError(f"feed_forward_proj={kind!r} is unknown; use relu or gated-gelu")
    num_layers = published.get("num_layers", 6)
    num_decoder_layers = published.get("num_decoder_layers")
    pre_norm = published.get("normalize_before", False)
    every = published.get("s4_every_n_layers", 1000)
    return SpadeConfig(
        vocab_size=published["vocab_size"],
        d_model=published.get("d_model", 512),
        num_heads=published.get("num_heads", 8),
        head_dim=published.get("d_kv", 64),
        d_ff=published.get("d_ff", 2048),
        num_encoder_layers=num_layers,
        num_decoder_layers=num_layers if num_decoder_layers is None else num_decoder_layers,
        state_space_layers=f"every {every}",
        state_dim=published.get("s4_state_dim", 64),
        state_space_copies=published.get("s4_n_ssm", 768),
        local_radius_tokens=published.get("local_radius", 128),
        relative_attention_num_buckets=published.get("relative_attention_num_buckets", 32),
        relative_attention_max_distance_tokens=published.get(
            "relative_attention_max_distance", 128
        ),
        normalization="pre" if pre_norm else "post",
        final_norm=False,
        feed_forward="relu" if kind == "relu" else "gated_gelu",
        # Without gates the published projections always have biases; with gates only the decoder's
        # follow `have_bias`, because the encoder's setting is overridden.
        feed_forward_bias=kind == "relu",
        decoder_bias=published.get("have_bias", False),
        initialization="published",
        dropout=published.get("dropout_rate", 0.1),
        norm_epsilon=published.get("layer_norm_epsilon", 1e-6),
        max_target_length_tokens=published.get("max_position_embeddings", 512),
        pad_token_id=published.get("pad_token_id", 1),
        eos_token_id=published.get("eos_token_id", 2),
        decoder_start_token_id=published.get("decoder_start_token_id", 2),
    )


def output_matrix(converted: Tensor, Ad: Tensor, length: int) -> Tensor:
    """Undo ``C~ = C (I - Ad^L)``, which the published code applies at its first forward.

    Args:
        converted: C~ as real pairs [K, H, n, 2].
        Ad: From `discretize` of the same layer, [H, N, N] float64.
        length: The buffer L saved beside it; 0 means that it was not converted yet.

    Returns:
        C as real pairs [K, H, n, 2]; float64 unless nothing was to be done.
    """
    if length == 0:
        return converted
    rows = real_output(converted.double()).transpose(0, 1)  # [H, K, N]
    identity = torch.eye(Ad.shape[-1], dtype=Ad.dtype, device=Ad.device)
    loss = identity - torch.linalg.matrix_power(Ad, length)
    solved = torch.linalg.solve(loss, rows, left=False).transpose(0, 1)
    real, imaginary = solved.chunk(2, dim=-1)
    return torch.stack([real, -imaginary], dim=-1) / 2


def state_space_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate one S4 layer (names such as ``kernel.kernel.C`` and ``D``)."""
    log_decay, frequency = published["kernel.kernel.inv_w_real"], published["kernel.kernel.w_imag"]
    B, P = published["kernel.kernel.B"][0], published["kernel.kernel.P"][0]
    log_dt, C = published["kernel.kernel.log_dt"], published["kernel.kernel.C"]
    Ad, _ = discretize(log_decay, frequency, P, B, log_dt)
    C = output_matrix(C, Ad, int(published["kernel.kernel.L"])).to(C.dtype)
    return {
        "C": C,
        "D": published["D"].flatten(),
        "log_dt": log_dt,
        "log_decay": log_decay,
        "frequency": frequency,
        "B": B,
        "P": P,
    }


def under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries whose names begin with a prefix, without it."""
    return {name[len(prefix) :]: x for name, x in state.items() if name.startswith(prefix)}


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return all entries with a prefix in front of their names."""
    return {prefix + name: x for name, x in state.items()}


def _renamed(published: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename modules, keeping ``.weight`` and, where there is one, ``.bias``."""
    result = {}
    for theirs, ours in names.items():
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" in published:
                result[f"{ours}.{kind}"] = published[f"{theirs}.{kind}"]
    return result


def _joined(published: Mapping[str, Tensor], parts: list[str], ours: str) -> dict[str, Tensor]:
    """Join several projections of the same input into one."""
    result = {}
    for kind in ("weight", "bias"):
        if f"{parts[0]}.{kind}" in published:
            result[f"{ours}.{kind}"] = torch.cat([published[f"{part}.{kind}"] for part in parts])
    return result


def local_attention_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate one local attention (names such as ``q.weight``)."""
    state = _joined(published, ["q", "k", "v"], "query_key_value")
    names = {"o": "output", "relative_attention_bias": "relative_attention_bias"}
    return state | _renamed(published, names)


def mixing_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate the first sublayer of an encoder layer, with or without a state space."""
    names = {
        "layer_norm": "norm",
        "norm_global": "global_norm",
        "norm_local": "local_norm",
        "aggregate": "aggregate",
    }
    attention = local_attention_state(under("SelfAttention.", published))
    state = _renamed(published, names) | prefixed("local_attention.", attention)
    state_space = under("s4.s4.", published)
    if state_space:
        state |= prefixed("state_space.", state_space_state(state_space))
    return state


def _position_wise_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    gated = "DenseReluDense.wi_0.weight" in published
    inner = ["wi_0", "wi_1"] if gated else ["wi"]
    state = _joined(published, [f"DenseReluDense.{name}" for name in inner], "feed_forward.expand")
    names = {"DenseReluDense.wo": "feed_forward.contract", "layer_norm": "norm"}
    return state | _renamed(published, names)


def _causal_mixing_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts = [f"SelfAttention.{name}" for name in "qkv"]
    names = {"SelfAttention.o": "attention.output", "layer_norm": "norm"}
    return _joined(published, parts, "attention.query_key_value") | _renamed(published, names)


def _cross_mixing_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {
        "EncDecAttention.q": "attention.query",
        "EncDecAttention.o": "attention.output",
        "layer_norm": "norm",
    }
    parts = ["EncDecAttention.k", "EncDecAttention.v"]
    return _joined(published, parts, "attention.key_value") | _renamed(published, names)


def encoder_state(published: Mapping[str, Tensor], config: SpadeConfig) -> dict[str, Tensor]:
    """Translate the encoder (names such as ``block.0.layer.0.SelfAttention.q.weight``)."""
    state = _renamed(published, _STACK_NORMS)
    for index in range(config.num_encoder_layers):
        theirs, ours = f"block.{index}.layer.", f"layers.{index}."
        state |= prefixed(f"{ours}mixing.", mixing_state(under(f"{theirs}0.", published)))
        position_wise = _position_wise_state(under(f"{theirs}1.", published))
        state |= prefixed(f"{ours}position_wise.", position_wise)
    return state


def decoder_state(published: Mapping[str, Tensor], config: SpadeConfig) -> dict[str, Tensor]:
    """Translate the decoder (names such as ``block.0.layer.1.EncDecAttention.q.weight``)."""
    state = _renamed(published, _STACK_NORMS)
    if "pos_embed.weight" in published:
        state["positions.weight"] = published["pos_embed.weight"][RESERVED_POSITIONS:]
    for index in range(config.num_decoder_layers):
        theirs, ours = f"block.{index}.layer.", f"layers.{index}."
        parts = {
            "mixing.": _causal_mixing_state(under(f"{theirs}0.", published)),
            "cross_mixing.": _cross_mixing_state(under(f"{theirs}1.", published)),
            "position_wise.": _position_wise_state(under(f"{theirs}2.", published)),
        }
        for name, part in parts.items():
            state |= prefixed(ours + name, part)
    return state


def seq2seq_state(published: Mapping[str, Tensor], config: SpadeConfig) -> dict[str, Tensor]:
    """Translate a whole published encoder-decoder into a state of `SpadeForSeq2Seq`.

    Args:
        published: Its state, as saved before or after its first forward.
        config: From `published_config`.

    Returns:
        Every name of ``SpadeForSeq2Seq(config).state_dict()``.
    """
    shared = published["shared.weight"]
    return {
        "model.shared.weight": shared,
        "lm_head.weight": shared,
        **prefixed("model.encoder.", encoder_state(under("encoder.", published), config)),
        **prefixed("model.decoder.", decoder_state(under("decoder.", published), config)),
    }


def causal_layers_state(published: Mapping[str, Tensor], config: SpadeConfig) -> dict[str, Tensor]:
    """Translate the layers of a published language model into a state of `LongStack`.

    They are those of the `EfficientLongSequenceModeling` repository, names such as
    ``0.self_attn.q.weight``; the norm on the embeddings is not among them. Layer 0 has the only
    table of relative biases: ``shared_relative_bias: true``.

    Args:
        published: Their state, as saved before or after its first forward.
        config: A causal configuration of the same sizes.
    """
    state: dict[str, Tensor] = {}
    for index in range(config.num_decoder_layers):
        layer, ours = under(f"{index}.", published), f"layers.{index}."
        names = {
            "self_attn_layer_norm": "mixing.norm",
            "norm_global": "mixing.global_norm",
            "norm_local": "mixing.local_norm",
            "aggregate": "mixing.aggregate",
            "fc1": "position_wise.feed_forward.expand",
            "fc2": "position_wise.feed_forward.contract",
            "final_layer_norm": "position_wise.norm",
        }
        state |= prefixed(ours, _renamed(layer, names))
        attention = local_attention_state(under("self_attn.", layer))
        state |= prefixed(f"{ours}mixing.local_attention.", attention)
        state_space = under("s4_module.s4.", layer)
        if state_space:
            state |= prefixed(f"{ours}mixing.state_space.", state_space_state(state_space))
    return state
