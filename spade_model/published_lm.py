"""Names and conventions of the published SPADE language model, translated into ours.

It is a decoder of fairseq with the layers of the `EfficientLongSequenceModeling` repository, whose
translation is `published.causal_layers_state`. Here is what surrounds them: an embedding that is
scaled by the root of its width, norms that may be absent, a head that may be the embedding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from spade_model.config import SpadeConfig
from spade_model.published import causal_layers_state
from spade_model.published_shapes import (
    Shapes,
    global_branch_shapes,
    linear_shapes,
    norm_shapes,
    state_space_shapes,
)

EMBEDDING = "decoder.embed_tokens.weight"
HEAD = "decoder.output_projection.weight"
UNUSED = ("decoder.version",)
"""A mark of fairseq's format."""

# What decides the function and cannot be seen from the shapes.
_REQUIRED = (
    "activation_fn",
    "attention_type",
    "decoder_attention_heads",
    "decoder_embed_dim",
    "decoder_ffn_embed_dim",
    "decoder_layers",
    "decoder_normalize_before",
    "local_radius",
    "no_token_positional_embeddings",
    "s4_every_n_layers",
    "s4_local_combine",
    "s4_n_ssm",
    "s4_state_dim",
    "use_relative_attention",
)
# What the published code can do and ours cannot: argument, the value it must have, and why.
_ONLY: tuple[tuple[str, Any, str], ...] = (
    ("adaptive_softmax_cutoff", None, "SPADE's head is one softmax over the whole vocabulary"),
    ("adaptive_input", False, "SPADE has one embedding of full width"),
    ("character_embeddings", False, "SPADE has one embedding of full width"),
    ("no_token_positional_embeddings", True, "SPADE's language model has no absolute positions"),
    ("attention_type", "local", "the published code has no other layers"),
    ("activation_fn", "relu", "SPADE's feed-forward without gates is that"),
    ("s4_channels", 1, "the published layers run with that alone"),
    ("scale_attn", False, "SPADE has no such norm"),
    ("scale_fc", False, "SPADE has no such norm"),
    ("scale_heads", False, "SPADE's heads have no such weights"),
    ("scale_resids", False, "SPADE's residual stream has no such weights"),
)


def published_lm_config(args: Mapping[str, Any], vocab_size: int) -> SpadeConfig:
    """Translate the arguments of a published language model.

    Args:
        args: The model's arguments as fairseq keeps them in a checkpoint.
        vocab_size: Entries of the dictionary, fairseq's own four included.

    Returns:
        A configuration that computes the same function, with the state space as it was trained.

    Raises:
        ValueError: An argument is missing, is something that SPADE does not compute, or the sizes
            do not fit together.
    """
    missing = [name for name in _REQUIRED if name not in args]
    if missing:
        raise ValueError(
            f"lacks {', '.join(missing)}; give all model arguments that the checkpoint holds"
        )
    for name, value, reason in _ONLY:
        if args.get(name, value) != value:
            raise ValueError(f"{name} is {args[name]!r}, but {reason}: only {value!r} is imported")
    width, heads = args["decoder_embed_dim"], args["decoder_attention_heads"]
    for name in ("decoder_input_dim", "decoder_output_dim"):
        if args.get(name, width) != width:
            raise ValueError(
                f"{name} {args[name]!r} differs from decoder_embed_dim {width!r}, but SPADE's "
                "embedding has full width: only equal ones are imported"
            )
    pre_norm = bool(args["decoder_normalize_before"])
    length = args.get("max_target_positions") or args.get("tokens_per_sample") or 1024
    return SpadeConfig(
        vocab_size=vocab_size,
        d_model=width,
        num_heads=heads,
        head_dim=width // heads,
        d_ff=args["decoder_ffn_embed_dim"],
        num_encoder_layers=0,
        num_decoder_layers=args["decoder_layers"],
        trained_length_tokens=length,
        max_target_length_tokens=length,
        state_space_layers=f"every {args['s4_every_n_layers']}",
        state_dim=args["s4_state_dim"],
        state_space_copies=args["s4_n_ssm"],
        dt_min=args.get("s4_dt_min", 1e-3),
        dt_max=args.get("s4_dt_max", 1e-1),
        trainable_state_space=_trained(args.get("s4_lr")),
        combine=args["s4_local_combine"],
        combine_weight=args.get("s4_weight", 0.5),
        local_radius_tokens=args["local_radius"],
        position="relative_bias" if args["use_relative_attention"] else "none",
        shared_relative_bias=bool(args["use_relative_attention"]),
        relative_attention_num_buckets=args.get("relative_attention_num_buckets", 32),
        relative_attention_max_distance_tokens=args.get("relative_attention_max_distance", 128),
        normalization="pre" if pre_norm else "post",
        embedding_norm=bool(args.get("layernorm_embedding", False)),
        final_norm=pre_norm and not args.get("no_decoder_final_norm", False),
        norm_epsilon=1e-5,
        feed_forward_bias=True,
        dropout=args.get("dropout", 0.1),
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
    )


def _trained(rates: Any) -> tuple[str, ...]:
    """Which quantities learn: those whose rate is not 0; fairseq keeps the rates as JSON."""
    if isinstance(rates, str):
        rates = json.loads(rates)
    if not isinstance(rates, Mapping):
        rates = dict.fromkeys(("A", "B", "dt"), rates)
    follows = {"A": "A", "P": "A", "B": "B", "log_dt": "dt"}
    return "C", "D", *(name for name, rate in follows.items() if rates.get(rate) != 0.0)


def published_lm_shapes(config: SpadeConfig) -> Shapes:
    """Return every tensor that the published language model saves, once each, but for its head.

    Args:
        config: From `published_lm_config`.
    """
    width, inner = config.d_model, config.d_ff
    shapes: Shapes = {EMBEDDING: (config.vocab_size, width)}
    if config.embedding_norm:
        shapes |= norm_shapes("decoder.layernorm_embedding", width)
    if config.final_norm:
        shapes |= norm_shapes("decoder.layer_norm", width)
    for index in range(config.num_decoder_layers):
        layer = f"decoder.layers.{index}"
        for part in "qkvo":
            shapes |= linear_shapes(f"{layer}.self_attn.{part}", width, width, False)
        shapes |= norm_shapes(f"{layer}.self_attn_layer_norm", width)
        shapes |= norm_shapes(f"{layer}.final_layer_norm", width)
        shapes |= linear_shapes(f"{layer}.fc1", inner, width, True)
        shapes |= linear_shapes(f"{layer}.fc2", width, inner, True)
        if index in config.state_space_layer_indices:
            shapes |= global_branch_shapes(layer, config)
            shapes |= state_space_shapes(f"{layer}.s4_module.s4", config)
    if config.position == "relative_bias":
        table = (config.relative_attention_num_buckets, config.num_heads)
        shapes["decoder.layers.0.self_attn.relative_attention_bias.weight"] = table
    return shapes


def causal_lm_state(
    published: Mapping[str, Tensor], config: SpadeConfig, *, embedding_scale: float
) -> tuple[dict[str, Tensor], bool]:
    """Translate a whole published language model into a state of `SpadeForCausalLM`.

    The scale of the embedding becomes part of the embedding. Where that is the head as well, the
    norm in front of the head takes the scale away again; without such a norm the two become
    different matrices.

    Args:
        published: Its state, as saved before or after its first forward; without a head of its own
            where that is the embedding.
        config: From `published_lm_config`.
        embedding_scale: What the published code multiplies embeddings by.

    Returns:
        Every name of ``SpadeForCausalLM(config).state_dict()``, and whether head and embedding are
        one matrix.
    """
    prefix = "decoder.layers."
    layers = {name[len(prefix) :]: x for name, x in published.items() if name.startswith(prefix)}
    stack = causal_layers_state(layers, config)
    for theirs, ours in (("layernorm_embedding", "first_norm"), ("layer_norm", "final_norm")):
        for kind in ("weight", "bias"):
            if f"decoder.{theirs}.{kind}" in published:
                stack[f"{ours}.{kind}"] = published[f"decoder.{theirs}.{kind}"]
    embedding = published[EMBEDDING] * embedding_scale
    head, tied = published.get(HEAD), HEAD not in published
    if tied and embedding_scale != 1.0:
        last = "final_norm"
        if config.normalization == "post":
            last = f"layers.{config.num_decoder_layers - 1}.position_wise.norm"
        tied = f"{last}.weight" in stack
        for kind in ("weight", "bias") if tied else ():
            stack[f"{last}.{kind}"] = stack[f"{last}.{kind}"] / embedding_scale
    if head is None:
        head = embedding if tied else published[EMBEDDING]
    state = {f"model.decoder.{name}": x for name, x in stack.items()}
    return {"model.shared.weight": embedding, **state, "lm_head.weight": head}, tied
