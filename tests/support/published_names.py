"""A published checkpoint in miniature, without the published code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
