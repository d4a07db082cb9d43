"""What a stack asks of whoever holds the rest of its sequences, when it is given a part of them.

`spade_model.context_parallel.part` answers by talking to other ranks. The network itself knows
these questions alone.
"""

from __future__ import annotations

import contextlib
from typing import Protocol

import torch
from torch import Tensor

from spade_model.attention.decoder import AttendAcross
from spade_model.config import AttentionBackend, SpadeConfig
from spade_model.layers import TokenContext


class SequencePart(AttendAcross, Protocol):
    """One rank's part of a batch of long sequences."""

    def token_context(
        self,
        config: SpadeConfig,
        embeddings: Tensor,
        attention_mask: Tensor | None,
        segment_ids: Tensor | None,
        *,
        causal: bool,
        draws_dropout: bool,
        backend: AttentionBackend,
    ) -> TokenContext:
        """Prepare a batch for the layers of a long stack.

        Args:
            config: The architecture.
            embeddings: Of this part, [B, L, d_model].
            attention_mask: Of this part, bool [B, L], or None.
            segment_ids: Of this part, int64 [B, L], or None.
            causal: Whether tokens see no future.
            draws_dropout: Whether the layers are about to draw random numbers.
            backend: Who computes attention.

        Raises:
            ValueError: The ranks do not agree on the batch, or the architecture cannot be cut.
        """

    def own_randomness(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        """Return a context in which this part draws other random numbers than the others.

        Behind it torch's generators stand where they do on all ranks.
        """

    def reaching_next(self, ids: Tensor) -> Tensor:
        """Put what the next part begins with behind what is here.

        Args:
            ids: int64 [B, L].

        Returns:
            int64 [B, L + 1], or `ids` itself at the end of the sequences.
        """

    def total(self, x: Tensor) -> Tensor:
        """Add up what all parts give, with gradients: the same on all, to the last bit."""
