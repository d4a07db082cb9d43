"""What a stack hands out beside its output, for those who want to look inside."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class StackRecord:
    """Lists that a stack fills while it runs; None where something is not wanted.

    Attention weights cost memory quadratic in the length, also where attention itself does not.
    """

    hidden_states: list[Tensor] | None = None
    """Each [B, L, d_model]: what enters the first layer, then what leaves each layer, the last one
    behind the final norm."""
    attention_weights: list[Tensor] | None = None
    """Of each layer's self-attention [B, H, L, past + L]: 0 where a token sees nothing."""
    cross_attention_weights: list[Tensor] | None = None
    """Of each decoder layer, [B, H, T, L]."""

    @property
    def has_weights(self) -> bool:
        """Whether attention has to write out its weights."""
        return self.attention_weights is not None or self.cross_attention_weights is not None

    def add_hidden(self, hidden: Tensor) -> None:
        """Take a hidden state if they are wanted."""
        if self.hidden_states is not None:
            self.hidden_states.append(hidden)
