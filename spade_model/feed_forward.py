"""The position-wise network: one hidden layer with ReLU, or gated with GELU."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from spade_model.config import SpadeConfig


class FeedForward(nn.Module):
    """``W2 relu(W1 x)``, or ``W2 (gelu(W0 x) * W1 x)`` with both inner projections in one."""

    def __init__(self, config: SpadeConfig, *, bias: bool) -> None:
        super().__init__()
        self.gated = config.feed_forward == "gated_gelu"
        self.dropout = nn.Dropout(config.dropout)
        self.expand = nn.Linear(config.d_model, config.d_ff * (2 if self.gated else 1), bias=bias)
        self.contract = nn.Linear(config.d_ff, config.d_model, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, L, d_model] to the same."""
        inner: Tensor = self.expand(hidden)
        if self.gated:
            gate, linear = inner.chunk(2, dim=-1)
            inner = functional.gelu(gate, approximate="tanh") * linear
        else:
            inner = functional.relu(inner)
        output: Tensor = self.contract(self.dropout(inner))
        return output
