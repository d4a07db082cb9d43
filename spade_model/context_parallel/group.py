"""The ranks that share one sequence, and the ways in which they talk.

All of them are collectives: every rank of the group calls them in the same order, also in the
backward pass and where activation checkpointing computes a layer again. Messages to ranks that need
nothing are empty; NCCL does not send those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from spade_model.context_parallel.traffic import Traffic, Transfer, TransferKind


@dataclass(frozen=True)
class ContextGroup:
    """Ranks in the order of their parts."""

    process_group: dist.ProcessGroup | None
    """Of torch.distributed; None for a group of one, which needs none."""
    rank: int
    """Place in the group, from 0."""
    size: int
    """R, ranks of the group."""
    traffic: Traffic | None = None
    """Counts what this rank sends, or None."""

    @classmethod
    def of(cls, process_group: dist.ProcessGroup, traffic: Traffic | None = None) -> ContextGroup:
        """Describe a process group that this rank belongs to."""
        rank, size = dist.get_rank(process_group), dist.get_world_size(process_group)
        return cls(process_group, rank, size, traffic)

    @classmethod
    def alone(cls, traffic: Traffic | None = None) -> ContextGroup:
        """Return a group of one rank."""
        return cls(None, 0, 1, traffic)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def exchange(
        self,
        sent: Tensor,
        sent_sizes: Sequence[int],
        received_sizes: Sequence[int],
        kind: TransferKind,
        *,
        backward: bool = False,
    ) -> Tensor:
        """Send a piece to each rank and receive one from each.

        Args:
            sent: The pieces one behind the other in the order of the ranks, [numbers].
            sent_sizes: Numbers for each rank.
            received_sizes: Numbers from each rank.
            kind: What it is.
            backward: Whether it is a gradient.

        Returns:
            The received pieces in the order of the ranks, [numbers].
        """
        assert sent_sizes[self.rank] == received_sizes[self.rank] == 0, "nothing is sent to oneself"
        received = sent.new_empty(sum(received_sizes))
        if self.size > 1:
            dist.all_to_all_single(
                received,
                sent.contiguous(),
                list(received_sizes),
                list(sent_sizes),
                group=self.process_group,
            )
            self._count(kind, backward, sent.numel() * sent.element_size())
        return received

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def gather(self, x: Tensor, kind: TransferKind, *, backward: bool = False) -> list[Tensor]:
        """Return the tensors of all ranks, each of the shape of this rank's."""
        if self.size == 1:
            return [x]
        everyone = [
            torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)
        ]
        dist.all_gather(everyone, x.contiguous(), group=self.process_group)
        self._count(kind, backward, (self.size - 1) * x.numel() * x.element_size())
        return everyone

    def _count(self, kind: TransferKind, backward: bool, sent_bytes: int) -> None:
        if self.traffic is not None:
            self.traffic.transfers.append(Transfer(kind, backward, sent_bytes))


class _Exchange(torch.autograd.Function):
    """`ContextGroup.exchange`, whose adjoint sends every piece's gradient back."""

    @staticmethod
    def forward(
        ctx: Any,
        sent: Tensor,
        group: ContextGroup,
        sent_sizes: Sequence[int],
        received_sizes: Sequence[int],
        kind: TransferKind,
    ) -> Tensor:
        ctx.facts = (group, sent_sizes, received_sizes, kind)
        received: Tensor = group.exchange(sent, sent_sizes, received_sizes, kind)
        return received

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        group, sent_sizes, received_sizes, kind = ctx.facts
        result = group.exchange(gradient, received_sizes, sent_sizes, kind, backward=True)
        return result, None, None, None, None


def differentiable_exchange(
    group: ContextGroup,
    sent: Tensor,
    sent_sizes: Sequence[int],
    received_sizes: Sequence[int],
    kind: TransferKind,
) -> Tensor:
    """Exchange as `ContextGroup.exchange` does, with gradients.

    The backward pass is a collective as well, so either all ranks go through it or none: `sent`
    must require a gradient on all of them, and the loss of each must depend on what is returned,
    if only through an empty piece of it. Autograd leaves out what nothing depends on.
    """
    result: Tensor = _Exchange.apply(  # type: ignore[no-untyped-call]
        sent, group, sent_sizes, received_sizes, kind
    )
    return result


class _Total(torch.autograd.Function):
    """A sum over the ranks, whose adjoint is one as well: every rank uses the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ContextGroup, kind: TransferKind) -> Tensor:
        ctx.facts = (group, kind)
        return torch.stack(group.gather(x, kind)).sum(dim=0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        group, kind = ctx.facts
        return torch.stack(group.gather(gradient, kind, backward=True)).sum(dim=0), None, None


def differentiable_total(group: ContextGroup, x: Tensor, kind: TransferKind) -> Tensor:
    """Return the sum of the tensors of all ranks, with gradients; the same bits on all of them.

    Either all ranks go through the backward pass of it or none, as of `differentiable_exchange`.
    """
    result: Tensor = _Total.apply(x, group, kind)  # type: ignore[no-untyped-call]
    return result
