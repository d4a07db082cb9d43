"""The formulas of the layers, and the names of the published ones, without golden data."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from published_names import published_names
from torch import nn

from spade_model.attention.long import attention_context
from spade_model.config import SpadeConfig
from spade_model.feed_forward import FeedForward
from spade_model.layers import GlobalLocalMixing, PositionWise, TokenContext
from spade_model.norms import make_norm
from spade_model.published import published_config, seq2seq_state
from spade_model.seq2seq import SpadeForSeq2Seq


def small(**changes: Any) -> SpadeConfig:
    fields = {"vocab_size": 9, "d_model": 12, "num_heads": 2, "head_dim": 4, "d_ff": 10}
    return SpadeConfig(**{**fields, "state_dim": 8, "local_radius_tokens": 3, **changes})


def test_pre_and_post_norm() -> None:
    hidden = torch.randn(2, 5, 12)
    before = PositionWise(small(), bias=False)
    after = PositionWise(small(normalization="post", final_norm=False), bias=False)
    for layer in (before, after):
        nn.init.normal_(layer.norm.weight)
    inner = before.feed_forward(before.norm(hidden))
    torch.testing.assert_close(before(hidden), hidden + inner)
    outer = after.norm(hidden + after.feed_forward(hidden))
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


def context_of(config: SpadeConfig, length: int) -> TokenContext:
    attention = attention_context(
        config,
        length,
        causal=False,
        valid=None,
        segment_ids=None,
        device=torch.device("cpu"),
        backend="auto",
    )
    return TokenContext(None, None, attention)


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_norms(norm: str) -> None:
    x = torch.randn(2, 5, 12)
    module = make_norm(small(norm=norm, norm_epsilon=0.5))
    nn.init.normal_(module.weight)
    centred = x - x.mean(-1, keepdim=True) if norm == "layer_norm" else x
    expected = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 0.5) * module.weight
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_concatenated_global_and_local(channels: int) -> None:
    config = small(state_space_channels=channels)
    layer = GlobalLocalMixing(config, 0, causal=False)
    for norm in (layer.norm, layer.global_norm, layer.local_norm):
        nn.init.normal_(norm.weight)
    hidden = torch.randn(2, 13, 12)
    context = context_of(config, 13)
    normed = layer.norm(hidden)
    far = layer.global_norm(layer.state_space(normed, None))
    near = layer.local_norm(layer.local_attention(normed, context.attention))
    far_weight, near_weight = layer.aggregate.weight.split([12 * channels, 12], dim=1)
    joined = far @ far_weight.T + near @ near_weight.T + layer.aggregate.bias
    torch.testing.assert_close(layer(hidden, context), hidden + joined)


def test_added_and_stacked_global_and_local() -> None:
    hidden = torch.randn(2, 13, 12)
    added = GlobalLocalMixing(small(combine="add", combine_weight=0.3), 0, causal=False)
    context = context_of(small(), 13)
    normed = added.norm(hidden)
    far = added.global_norm(added.state_space(normed, None))
    near = added.local_norm(added.local_attention(normed, context.attention))
    torch.testing.assert_close(added(hidden, context), hidden + 0.3 * far + 0.7 * near)
    stacked = GlobalLocalMixing(small(combine="stack"), 0, causal=False)
    far = stacked.state_space(stacked.norm(hidden), None)
    expected = hidden + stacked.local_attention(far, context.attention)
    torch.testing.assert_close(stacked(hidden, context), expected)


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
