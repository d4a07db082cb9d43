"""What a causal language model has to remember of the tokens before: a window and a state.

Its size does not depend on how many there were, except under ``attention: full``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spade_model.attention.decoding import KeyValueRing, TokenWindow
from spade_model.config import SpadeConfig
from spade_model.state_space.mixer import SequenceMixer


class LayerMemory:
    """One layer's memory: the last keys and values, and the state of its state space."""

    def __init__(self) -> None:
        self.ring = KeyValueRing()
        self.state: Tensor | None = None
        """[B, d_model, ...]; None where the layer has no state space or there were no tokens."""

    def mix(self, mixer: SequenceMixer, hidden: Tensor, valid: Tensor | None) -> Tensor:
        """Let a state space take in new tokens, and remember its state. No gradient passes it.

        Args:
            mixer: Of this layer.
            hidden: [B, T, d_model].
            valid: Bool [B, T], False where padded, or None.

        Returns:
            [B, T, channels * d_model].
        """
        state = mixer.initial_state(hidden.shape[0]) if self.state is None else self.state
        if hidden.shape[1] == 1:
            if valid is not None:
                hidden = hidden.masked_fill(~valid[:, :, None], 0)
            output, state = mixer.step(hidden[:, 0], state)
            output = output[:, None]
        else:
            output, state = mixer.prefill(hidden, valid, state)
        self.state = state.detach()
        return output


class CausalCache:
    """The memory of a causal stack for a batch of rows.

    Every call of `LongStack.forward` with it appends tokens to all rows; rows of different lengths
    are padded on the left by a mask. It does not grow once the window is full, and it cannot
    forget its last tokens.
    """

    def __init__(self, config: SpadeConfig) -> None:
        self.window = TokenWindow(config)
        self.layers = [LayerMemory() for _ in range(config.num_long_layers)]

    @property
    def num_tokens(self) -> int:
        """Tokens taken in, padding included."""
        return self.window.num_tokens

    @property
    def batch_size(self) -> int:
        """Rows, or -1 before the first token."""
        return self.layers[0].ring.batch_size

    @torch.no_grad()
    def select_rows(self, rows: Tensor) -> None:
        """Keep, reorder or repeat rows of the batch, as beam search does.

        Args:
            rows: The old row of each new one, int64 [B'], on any device.
        """
        if self.batch_size < 0:
            return
        rows = rows.to(self.layers[0].ring.device)
        self.window.select_rows(rows)
        for layer in self.layers:
            layer.ring.select_rows(rows)
            if layer.state is not None:
                layer.state = layer.state.index_select(0, rows)

    @property
    def num_bytes(self) -> int:
        """Memory of all tensors kept."""
        total = 0
        for layer in self.layers:
            total += layer.ring.num_bytes
            total += 0 if layer.state is None else layer.state.untyped_storage().nbytes()
        for mask in (self.window.valid, self.window.num_leading):
            total += 0 if mask is None else mask.untyped_storage().nbytes()
        return total
