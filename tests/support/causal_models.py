"""Small causal language models of every kind."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from spade_model import CausalCache, SpadeConfig, SpadeForCausalLM

SMALL = SpadeConfig(
    vocab_size=40,
    d_model=16,
    num_heads=2,
    head_dim=8,
    d_ff=24,
    num_encoder_layers=0,
    num_decoder_layers=2,
    state_dim=4,
    local_radius_tokens=5,
)
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "published": {
        "normalization": "post",
        "final_norm": False,
        "shared_relative_bias": True,
        "feed_forward_bias": True,
        "initialization": "published",
    },
    "add": {"combine": "add", "combine_weight": 0.3, "position": "rope", "norm": "rms_norm"},
    "stack": {"combine": "stack", "state_space": "s4d_lin", "state_space_layers": 2},
    "chunk": {"attention": "chunk", "state_space": "ema", "position": "alibi"},
    "full": {"attention": "full", "state_space": "s4d_legs", "state_space_channels": 2},
    "local": {"state_space": "none", "position": "none"},
}
EVERY_VARIANT = pytest.mark.parametrize("name", VARIANTS)


def build(name: str = "default", **changes: Any) -> SpadeForCausalLM:
    torch.manual_seed(0)
    model = SpadeForCausalLM(dataclasses.replace(SMALL, **(VARIANTS[name] | changes)))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "relative_attention_bias" in parameter_name:
                parameter.normal_()
    return model.eval()


def tokens(*shape: int) -> Tensor:
    return torch.randint(2, SMALL.vocab_size, shape)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def decode(
    model: SpadeForCausalLM, ids: Tensor, valid: Tensor | None, lengths: list[int]
) -> tuple[Tensor, CausalCache]:
    """Logits of all tokens, given in parts of these lengths."""
    cache, parts, done = model.new_cache(), [], 0
    for length in lengths:
        part = slice(done, done + length)
        mask = None if valid is None else valid[:, part]
        parts.append(model.decode(ids[:, part], cache, attention_mask=mask))
        done += length
    return torch.cat(parts, dim=1), cache
