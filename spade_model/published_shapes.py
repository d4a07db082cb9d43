"""Names and shapes of the tensors in a published SPADE checkpoint (`msrlongt5`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spade_model.config import SpadeConfig
from spade_model.published import RESERVED_POSITIONS

Shapes = dict[str, tuple[int, ...]]

TIED = ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
"""Further names of `shared.weight`, which some ways of saving write again."""
UNUSED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)
"""What the published code itself ignores when it loads: left over from early T5."""


def published_shapes(config: SpadeConfig) -> Shapes:
    """Return every tensor that the published encoder-decoder saves, once each.

    Args:
        config: From `published.published_config`.
    """
    width = config.d_model
    shapes: Shapes = {"shared.weight": (config.vocab_size, width)}
    for stack in ("encoder", "decoder"):
        shapes |= norm_shapes(f"{stack}.first_layer_norm", width)
    positions = config.max_target_length_tokens + RESERVED_POSITIONS
    shapes["decoder.pos_embed.weight"] = (positions, width)
    for index in range(config.num_encoder_layers):
        layer = f"encoder.block.{index}.layer"
        shapes |= _attention(f"{layer}.0.SelfAttention", config, config.attention_bias)
        buckets = (config.relative_attention_num_buckets, config.num_heads)
        shapes[f"{layer}.0.SelfAttention.relative_attention_bias.weight"] = buckets
        shapes |= norm_shapes(f"{layer}.0.layer_norm", width)
        if index in config.state_space_layer_indices:
            shapes |= global_branch_shapes(f"{layer}.0", config)
            shapes |= state_space_shapes(f"{layer}.0.s4.s4", config)
        shapes |= _feed_forward(f"{layer}.1", config, config.feed_forward_bias)
    for index in range(config.num_decoder_layers):
        layer = f"decoder.block.{index}.layer"
        for number, attention in enumerate(("SelfAttention", "EncDecAttention")):
            shapes |= _attention(f"{layer}.{number}.{attention}", config, config.decoder_bias)
            shapes |= norm_shapes(f"{layer}.{number}.layer_norm", width)
        biased = config.feed_forward_bias or config.decoder_bias
        shapes |= _feed_forward(f"{layer}.2", config, biased)
    return shapes


def shape_problems(
    found: Mapping[str, tuple[int, ...]],
    expected: Shapes,
    *,
    same: Mapping[str, str],
    unused: Sequence[str] = (),
) -> list[str]:
    """Say in words what a file has too little, too much, or of another shape.

    Args:
        found: What it has.
        expected: What it should have.
        same: Further names of expected tensors, which it may repeat.
        unused: Further names it may have.
    """
    known = {*expected, *same, *unused}
    problems = []
    for word, names in (
        ("missing", [name for name in expected if name not in found]),
        ("unexpected", sorted(name for name in found if name not in known)),
    ):
        if names:
            problems.append(f"{word}: {some(names)}")
    wanted = {**{name: expected[original] for name, original in same.items()}, **expected}
    wrong = [
        f"{name} is {list(found[name])} and not {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    if wrong:
        problems.append(f"of another shape: {some(wrong)}")
    return problems


def some(names: list[str], limit: int = 6) -> str:
    """Join names for a line that stays readable."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def linear_shapes(name: str, outputs: int, inputs: int, biased: bool) -> Shapes:
    """Return those of a linear layer."""
    shapes: Shapes = {f"{name}.weight": (outputs, inputs)}
    return shapes | {f"{name}.bias": (outputs,)} if biased else shapes


def norm_shapes(name: str, width: int) -> Shapes:
    """Return those of a LayerNorm."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _attention(name: str, config: SpadeConfig, biased: bool) -> Shapes:
    shapes: Shapes = {}
    for part in "qkv":
        shapes |= linear_shapes(f"{name}.{part}", config.inner_dim, config.d_model, biased)
    return shapes | linear_shapes(f"{name}.o", config.d_model, config.inner_dim, biased)


def _feed_forward(name: str, config: SpadeConfig, biased: bool) -> Shapes:
    shapes = norm_shapes(f"{name}.layer_norm", config.d_model)
    dense = f"{name}.DenseReluDense"
    inner = ("wi_0", "wi_1") if config.feed_forward == "gated_gelu" else ("wi",)
    for part in inner:
        shapes |= linear_shapes(f"{dense}.{part}", config.d_ff, config.d_model, biased)
    return shapes | linear_shapes(f"{dense}.wo", config.d_model, config.d_ff, biased)


def global_branch_shapes(name: str, config: SpadeConfig) -> Shapes:
    """Return those of the norms and the projection that join a state space with attention."""
    width = config.d_model
    if config.combine == "stack":
        return {}
    shapes = norm_shapes(f"{name}.norm_global", width) | norm_shapes(f"{name}.norm_local", width)
    if config.combine == "concat":
        shapes |= linear_shapes(f"{name}.aggregate", width, 2 * width, True)
    return shapes


def state_space_shapes(name: str, config: SpadeConfig) -> Shapes:
    """Return those of one S4 layer, which looks both ways unless the model is causal."""
    width, half = config.d_model, config.state_dim // 2
    copies, kernel = config.num_state_space_copies, f"{name}.kernel.kernel"
    return {
        f"{name}.D": (1, width),
        f"{kernel}.C": (1 if config.is_causal_lm else 2, width, half, 2),
        f"{kernel}.log_dt": (width,),
        f"{kernel}.B": (1, copies, half, 2),
        f"{kernel}.P": (1, copies, half, 2),
        f"{kernel}.inv_w_real": (copies, half),
        f"{kernel}.w_imag": (copies, half),
        f"{kernel}.L": (),
    }
