"""What a rank sends to the others of its group, counted where it leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

TransferKind = Literal["agreement", "masks", "attention", "state_space", "cross_attention", "loss"]
"""What is sent: facts that all ranks must share, ids of neighbouring tokens, keys and values,
states of state spaces, parts of the decoder's attention, parts of a language model's loss."""


@dataclass(frozen=True)
class Transfer:
    """One exchange, as the sender sees it."""

    kind: TransferKind
    backward: bool
    """Whether gradients are sent."""
    sent_bytes: int
    """To other ranks; what a rank keeps for itself is not sent."""


@dataclass
class Traffic:
    """All exchanges of a rank in their order.

    Layers come in order, so the n-th forward transfer of a kind is that of the n-th layer that has
    one; backward they come in the reverse order. Activation checkpointing repeats forward ones.
    """

    transfers: list[Transfer] = field(default_factory=list)

    def select(self, kind: TransferKind, *, backward: bool) -> list[int]:
        """Return the bytes of each transfer of a kind and direction."""
        chosen = [x for x in self.transfers if (x.kind, x.backward) == (kind, backward)]
        return [x.sent_bytes for x in chosen]

    @property
    def sent_bytes(self) -> int:
        """Of all transfers."""
        return sum(x.sent_bytes for x in self.transfers)
