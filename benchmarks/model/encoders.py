"""Encoders of equal sizes: ours in three forms, and those of transformers that users know."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spade_model.activation_checkpointing import ActivationCheckpointing
from spade_model.config import SpadeConfig
from spade_model.seq2seq import SpadeModel

OURS = ("spade", "spade frozen", "spade none")
PEERS = ("LongT5 local", "LongT5 tglobal", "T5 sdpa")
MODELS = (*OURS, *PEERS)
_GLOBAL_BLOCK = 16
"""Tokens that LongT5's transient-global attention sums into one more key."""


@dataclass(frozen=True)
class Sizes:
    """What all encoders have in common."""

    d_model: int = 512
    num_heads: int = 8
    d_ff: int = 2048
    radius: int = 127
    vocab_size: int = 32128
    state_dim: int = 64

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.d_model // self.num_heads


def spade_config(sizes: Sizes, layers: int, model: str = "spade") -> SpadeConfig:
    """Return our configuration: its defaults but for the sizes."""
    frozen = {"trainable_state_space": ()} if model == "spade frozen" else {}
    none = {"state_space": "none"} if model == "spade none" else {}
    return SpadeConfig(
        vocab_size=sizes.vocab_size,
        d_model=sizes.d_model,
        num_heads=sizes.num_heads,
        head_dim=sizes.head_dim,
        d_ff=sizes.d_ff,
        num_encoder_layers=layers,
        num_decoder_layers=0,
        local_radius_tokens=sizes.radius,
        state_dim=sizes.state_dim,
        **frozen,
        **none,
    )


def _peer(model: str, sizes: Sizes, layers: int) -> nn.Module:
    from transformers import LongT5Config, LongT5EncoderModel, T5Config, T5EncoderModel

    common = {
        "vocab_size": sizes.vocab_size,
        "d_model": sizes.d_model,
        "d_kv": sizes.head_dim,
        "num_heads": sizes.num_heads,
        "d_ff": sizes.d_ff,
        "num_layers": layers,
        "dropout_rate": 0.0,
    }
    if model == "T5 sdpa":
        return T5EncoderModel._from_config(T5Config(**common), attn_implementation="sdpa")
    kind = {"LongT5 local": "local", "LongT5 tglobal": "transient-global"}[model]
    return LongT5EncoderModel(
        LongT5Config(
            **common,
            encoder_attention_type=kind,
            local_radius=sizes.radius,
            global_block_size=_GLOBAL_BLOCK,
        )
    )


class Encoder:
    """One encoder in one precision: a forward pass, or a forward and a backward pass.

    Args:
        model: One of `MODELS`.
        sizes: Of all encoders.
        layers: Of this one.
        precision: ``fp32``; ``autocast`` to bfloat16 over float32 weights; ``bf16``: all weights
            and activations in bfloat16.
        checkpointing: Whether layers are computed again in the backward pass, ours alone.
    """

    def __init__(
        self, model: str, sizes: Sizes, layers: int, precision: str, checkpointing: bool = False
    ) -> None:
        torch.manual_seed(0)
        self.ours, self.precision = model in OURS, precision
        self._gradient: Tensor | None = None
        if self.ours:
            self.module: nn.Module = SpadeModel(spade_config(sizes, layers, model))
        else:
            self.module = _peer(model, sizes, layers)
        if checkpointing:
            assert isinstance(self.module, SpadeModel), "ours alone"
            self.module.set_activation_checkpointing(ActivationCheckpointing("full"))
        if precision == "bf16":
            self.module.to(torch.bfloat16)

    def _encode(self, ids: Tensor) -> Tensor:
        casting = (
            torch.autocast("cpu", torch.bfloat16)
            if self.precision == "autocast"
            else contextlib.nullcontext()
        )
        with casting:
            if self.ours:
                hidden: Tensor = self.module.encode(ids)
            else:
                hidden = self.module(input_ids=ids).last_hidden_state
        return hidden

    def forward(self, ids: Tensor) -> None:
        """Encode in evaluation mode, without gradients."""
        if self.module.training:
            self.module.eval()
        with torch.no_grad():
            self._encode(ids)

    def step(self, ids: Tensor) -> None:
        """Encode and differentiate in training mode; the gradients are dropped afterwards."""
        if not self.module.training:
            self.module.train()
        hidden = self._encode(ids)
        if self._gradient is None or self._gradient.shape != hidden.shape:
            # Random: through a norm, a constant gradient is none at all.
            self._gradient = torch.randn(hidden.shape).to(hidden.dtype)
        hidden.backward(self._gradient)
        self.module.zero_grad(set_to_none=True)

    def run(self, kind: str, ids: Tensor) -> None:
        """Do one ``forward`` or one ``fwd+bwd``."""
        if kind == "forward":
            self.forward(ids)
        else:
            self.step(ids)


PASSES = ("forward", "fwd+bwd")


def useful_flops_per_token(model: str, sizes: Sizes, layers: int, length: int) -> int:
    """Return the operations of a forward pass that no implementation can do without.

    Projections, feed-forward, exact window (or row) of attention, and our aggregate projection. The
    long convolution is not counted, nor is any mask or padding of a block.
    """
    width, inner = sizes.d_model, sizes.num_heads * sizes.head_dim
    keys = min(length, 2 * sizes.radius + 1)
    if model == "T5 sdpa":
        keys = length
    elif model == "LongT5 tglobal":
        keys += length // _GLOBAL_BLOCK
    layer = 2 * (4 * width * inner + 2 * width * sizes.d_ff) + 4 * inner * keys
    aggregate = 2 * 2 * width * width if model in ("spade", "spade frozen") else 0
    return layers * layer + aggregate


def make_ids(sizes: Sizes, length: int, tokens: int) -> Tensor:
    """Return ids [B, L]: `tokens` of them, but at least one row."""
    generator = torch.Generator().manual_seed(0)
    rows = max(1, tokens // length)
    return torch.randint(2, sizes.vocab_size, (rows, length), generator=generator)
