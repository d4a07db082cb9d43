"""The formulas of the layers, and the names of the published ones, without golden data."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spade_model.config import SpadeConfig
from spade_model.feed_forward import FeedForward
from spade_model.layers import GlobalLocalMixing, PositionWise
from spade_model.local_attention import LocalSelfAttention, local_windows
from spade_model.published import published_config, seq2seq_state
from spade_model.seq2seq import SpadeForSeq2Seq


def small(**changes: Any) -> SpadeConfig:
    fields = {"vocab_size": 9, "d_model": 12, "num_heads": 2, "head_dim": 4, "d_ff": 10}
    return SpadeConfig(**{**fields, "state_dim": 8, "local_radius_tokens": 3, **changes})


def test_pre_and_post_norm() -> None:
    hidden = torch.randn(2, 5, 12)
    before = PositionWise(small(), bias=False)
    after = PositionWise(small(normalization="post", final_layer_norm=False), bias=False)
    for layer in (before, after):
        nn.init.normal_(layer.layer_norm.weight)
    inner = before.feed_forward(before.layer_norm(hidden))
    torch.testing.assert_close(before(hidden), hidden + inner)
    outer = after.layer_norm(hidden + after.feed_forward(hidden))
    torch.testing.assert_close(after(hidden), outer)


def test_feed_forward_forms() -> None:
    x = torch.randn(2, 5, 12)
    plain = FeedForward(small(), bias=True)
    inner = torch.relu(x @ plain.expand.weight.T + plain.expand.bias)
    torch.testing.assert_close(plain(x), inner @ plain.contract.weight.T + plain.contract.bias)
    gated = FeedForward(small(feed_forward="gated_gelu"), bias=False)
    gate, linear = (x @ gated.expand.weight.T).chunk(2, dim=-1)
    # GELU in the tanh form, Hendrycks and Gimpel, arXiv 1606.08415.
    tanh = torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3))
    torch.testing.assert_close(gated(x), (gate / 2 * (1 + tanh) * linear) @ gated.contract.weight.T)


def test_local_attention_projects_scales_and_joins_heads() -> None:
    config = small()
    layer = LocalSelfAttention(config)
    nn.init.zeros_(layer.relative_attention_bias.weight)
    x = torch.randn(1, 4, 12)  # Within the radius, so the band is everything.
    query, key, value = (
        part.view(4, 2, 4).transpose(0, 1)
        for part in (x[0] @ layer.query_key_value.weight.T).chunk(3, dim=-1)
    )
    weights = torch.softmax(query @ key.mT / 2, dim=-1)
    joined = (weights @ value).transpose(0, 1).flatten(1)
    windows = local_windows(config, 4, None, x.device)
    torch.testing.assert_close(layer(x, windows)[0], joined @ layer.output.weight.T)


def test_global_and_local_are_normalised_apart_and_joined() -> None:
    config = small()
    layer = GlobalLocalMixing(config)
    for norm in (layer.layer_norm, layer.global_layer_norm, layer.local_layer_norm):
        nn.init.normal_(norm.weight)
    hidden = torch.randn(2, 13, 12)
    windows = local_windows(config, 13, None, hidden.device)
    normed = layer.layer_norm(hidden)
    far = layer.global_layer_norm(layer.state_space(normed, None))
    near = layer.local_layer_norm(layer.local_attention(normed, windows))
    far_weight, near_weight = layer.aggregate.weight.chunk(2, dim=1)
    joined = far @ far_weight.T + near @ near_weight.T + layer.aggregate.bias
    torch.testing.assert_close(layer(hidden, None, windows), hidden + joined)


def published_names(config: dict[str, Any]) -> dict[str, Tensor]:
    """A random state with the names and shapes of the published encoder-decoder."""
    width, states, copies = config["d_model"], config["s4_state_dim"] // 2, config["s4_n_ssm"]
    gated, biased = config["feed_forward_proj"] == "gated-gelu", config["have_bias"]
    state = {"shared.weight": torch.randn(config["vocab_size"], width)}

    def linear(name: str, outputs: int, inputs: int, bias: bool) -> None:
        state[f"{name}.weight"] = torch.randn(outputs, inputs)
        if bias:
            state[f"{name}.bias"] = torch.randn(outputs)

    def norm(name: str) -> None:
        linear(name, width, 1, True)
        state[f"{name}.weight"] = torch.randn(width)

    def layers(stack: str, attentions: list[str], bias: bool) -> None:
        norm(f"{stack}.first_layer_norm")
        for block in range(2):
            prefix = f"{stack}.block.{block}.layer"
            for i, attention in enumerate(attentions):
                norm(f"{prefix}.{i}.layer_norm")
                for part in "qkvo":
                    linear(f"{prefix}.{i}.{attention}.{part}", width, width, bias)
            last = f"{prefix}.{len(attentions)}"
            norm(f"{last}.layer_norm")
            for name in ("wi_0", "wi_1") if gated else ("wi",):
                linear(f"{last}.DenseReluDense.{name}", config["d_ff"], width, bias or not gated)
            linear(f"{last}.DenseReluDense.wo", width, config["d_ff"], bias or not gated)

    layers("encoder", ["SelfAttention"], False)
    layers("decoder", ["SelfAttention", "EncDecAttention"], biased)
    for block in range(2):
        name = f"encoder.block.{block}.layer.0.SelfAttention.relative_attention_bias.weight"
        state[name] = torch.randn(32, config["num_heads"])
    state["decoder.pos_embed.weight"] = torch.randn(config["max_position_embeddings"] + 2, width)
    first = "encoder.block.0.layer.0"
    for name in ("norm_global", "norm_local"):
        norm(f"{first}.{name}")
    linear(f"{first}.aggregate", width, 2 * width, True)
    kernel = f"{first}.s4.s4.kernel.kernel"
    state[f"{first}.s4.s4.D"] = torch.randn(1, width)
    state[f"{kernel}.C"] = torch.randn(2, width, states, 2)
    state[f"{kernel}.log_dt"] = torch.randn(width) - 4
    for name in "BP":
        state[f"{kernel}.{name}"] = torch.randn(1, copies, states, 2)
    for name in ("inv_w_real", "w_imag"):
        state[f"{kernel}.{name}"] = torch.randn(copies, states)
    state[f"{kernel}.L"] = torch.tensor(64)
    return state


@pytest.mark.parametrize(
    ("kind", "biased"),
    [("relu", False), ("relu", True), ("gated-gelu", False), ("gated-gelu", True)],
)
def test_published_states_fill_every_parameter(kind: str, biased: bool) -> None:
    facts = {"vocab_size": 11, "d_model": 8, "d_kv": 4, "num_heads": 2, "d_ff": 6, "num_layers": 2}
    facts |= {"s4_state_dim": 4, "s4_n_ssm": 2, "max_position_embeddings": 16}
    named = {**facts, "feed_forward_proj": kind, "have_bias": biased}
    config = published_config(named)
    theirs = published_names(named)
    model = SpadeForSeq2Seq(config)
    model.load_state_dict(seq2seq_state(theirs, config), strict=True)
    query = theirs["decoder.block.1.layer.1.EncDecAttention.q.weight"]
    assert torch.equal(model.model.decoder.layers[1].cross_mixing.attention.query.weight, query)
    positions = model.model.decoder.positions.weight
    assert torch.equal(positions, theirs["decoder.pos_embed.weight"][2:])
    output = model(torch.randint(0, 11, (1, 9)), torch.randint(0, 11, (1, 4)))
    assert bool(output.logits.isfinite().all())


def test_impossible_published_configurations_are_explained() -> None:
    with pytest.raises(ValueError, match="vocab_size is missing"):
        published_config({})
    with pytest.raises(ValueError, match="'gated-silu'"):
        published_config({"vocab_size": 9, "feed_forward_proj": "gated-silu"})
    # The published defaults do not fit together: 768 copies do not divide a width of 512.
    with pytest.raises(ValueError, match="state_space_copies=768"):
        published_config({"vocab_size": 9})
