"""Small encoder-decoders of every kind, shared by the tests of the network."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from spade_model.config import SpadeConfig
from spade_model.seq2seq import SpadeForSeq2Seq

SMALL = SpadeConfig(
    vocab_size=50,
    d_model=32,
    num_heads=2,
    head_dim=16,
    d_ff=64,
    num_encoder_layers=3,
    num_decoder_layers=2,
    state_dim=8,
    state_space_layers=2,
    local_radius_tokens=5,
    max_target_length_tokens=40,
)
PUBLISHED = dataclasses.replace(
    SMALL,
    normalization="post",
    final_norm=False,
    feed_forward_bias=True,
    initialization="published",
)
GATED = dataclasses.replace(
    SMALL, feed_forward="gated_gelu", decoder_bias=True, state_space_copies=4
)
CHUNKED = dataclasses.replace(
    SMALL,
    attention="chunk",
    position="rope",
    decoder_position="rope",
    norm="rms_norm",
    state_space="s4d_lin",
    state_space_discretization="zero_order_hold",
    combine="add",
    attention_bias=True,
)
SLOPED = dataclasses.replace(
    SMALL,
    position="alibi",
    decoder_position="alibi",
    state_space="ema",
    state_space_layers="every 2",
    combine="stack",
)
FULL = dataclasses.replace(
    SMALL,
    attention="full",
    shared_relative_bias=True,
    decoder_position="none",
    state_space="s4d_legs",
    state_space_layers=(1,),
    state_space_channels=2,
)
LIKE_T5 = dataclasses.replace(
    FULL, decoder_position="relative_bias", embedding_norm=False, norm="rms_norm"
)
KINDS = {
    "ours": SMALL,
    "published": PUBLISHED,
    "gated": GATED,
    "chunked": CHUNKED,
    "sloped": SLOPED,
    "full": FULL,
    "like_t5": LIKE_T5,
}
EVERY_KIND = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())


def build(config: SpadeConfig, seed: int = 0) -> SpadeForSeq2Seq:
    torch.manual_seed(seed)
    model = SpadeForSeq2Seq(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "relative_attention_bias" in name:
                parameter.normal_()
    return model.eval()


def tokens(*shape: int) -> Tensor:
    return torch.randint(2, SMALL.vocab_size, shape)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
