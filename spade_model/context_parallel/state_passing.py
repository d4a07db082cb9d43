"""State spaces over a part: what the tokens of other parts add, through one state of each.

Every part makes the state that its own tokens leave behind, from both ends in the encoder, and
sends it to the ranks on that side. What comes in is folded by the recurrence, ``S <- a^L S + s``
over the parts in between, and answered by ``C a^t S``. Nothing that is sent depends on a length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spade_model.context_parallel.boundary import Boundary, boundaries
from spade_model.context_parallel.group import ContextGroup, differentiable_exchange
from spade_model.state_space.mixer import SequenceMixer


@dataclass(frozen=True)
class Passage:
    """Where documents of packed rows let a state pass, seen in one direction.

    Ranks are numbered along the direction, so that states move from lower to higher ones.
    """

    leaving: Tensor
    """Bool [B, L]: tokens of this part whose document reaches its far end."""
    entering: Tensor
    """Bool [B, L]: tokens of this part whose document begins before it, or at its near end."""
    through: Tensor
    """Bool [R, B]: whether one document fills the whole part of a rank."""
    joined: Tensor
    """Bool [R, B]: whether a rank's part begins in the document in which the one before ends."""


@dataclass(frozen=True)
class StatePassing:
    """What `SequenceMixer.forward` asks for the rest of the sequence."""

    group: ContextGroup
    lengths_tokens: tuple[int, ...]
    passages: tuple[Passage, ...] | None
    """Of the past and of the future; None where all is one document."""

    def response(self, mixer: SequenceMixer, hidden: Tensor, valid: Tensor | None) -> Tensor:
        """Return what the other parts add to the outputs of this one.

        Args:
            mixer: The state space.
            hidden: Its inputs [B, L, H].
            valid: Bool [B, L], False where padded, or None.

        Returns:
            [B, L, channels * H] in the type of states.
        """
        length, longest = hidden.shape[1], max(self.lengths_tokens)
        systems = boundaries(mixer, longest)
        u = hidden.to(systems[0].dtype).transpose(1, 2)  # [B, H, L]
        if valid is not None:
            u = u.masked_fill(~valid[:, None], 0)
        states = []
        for number, system in enumerate(systems):
            reaching = u
            if self.passages is not None:
                reaching = u.masked_fill(~self.passages[number].leaving[:, None], 0)
            # The newest token that the far end has seen is the last one, or the first.
            states.append(system.take_in(reaching if number else reaching.flip(-1)))
        total = None
        for number, incoming in enumerate(self._pass_on(states)):
            system = systems[number]
            state = self._folded(system, incoming, number)
            # A kernel of the past has its first tap at distance 0, one of the future at 1.
            state = state if number else system.advance(state, 1)
            answer = system.emit(state, length)
            answer = answer.flip(-1) if number else answer
            if self.passages is not None:
                entering = self.passages[number].entering
                answer = answer.masked_fill(~entering[:, None, None], 0)
            total = answer if total is None else total + answer
        assert total is not None, "there is a direction"
        return total.flatten(1, 2).transpose(1, 2)

    def _pass_on(self, states: Sequence[Tensor]) -> list[list[Tensor]]:
        """Send this part's states, and return those of the parts before and of those behind.

        The latter come from the farthest part to the nearest, and begin with a zero that depends on
        whatever was received: then no rank leaves the backward pass of the exchange out.
        """
        rank, size, number = self.group.rank, self.group.size, states[0].numel()
        before, behind = [number] * rank, [number] * (size - 1 - rank)
        nothing_before, nothing_behind = [0] * rank, [0] * (size - 1 - rank)
        to_behind = states[0].expand(size - 1 - rank, *states[0].shape)
        if len(states) == 1:
            sent, sent_sizes = to_behind, [*nothing_before, 0, *behind]
            received_sizes = [*before, 0, *nothing_behind]
        else:
            to_before = states[1].expand(rank, *states[1].shape)
            sent = torch.cat([to_before, to_behind])
            sent_sizes = received_sizes = [*before, 0, *behind]
        received = differentiable_exchange(
            self.group, sent.reshape(-1), sent_sizes, received_sizes, "state_space"
        )
        parts = received.view(-1, *states[0].shape)
        start = torch.zeros_like(states[0]) + received[:0].sum()
        coming = [[start, *parts[:rank]]]
        if len(states) == 2:
            coming.append([start, *parts[rank:].flip(0)])
        return coming

    def _folded(self, system: Boundary, incoming: list[Tensor], direction: int) -> Tensor:
        """Return the state at the near end of this part, [B, H, ...]."""
        state, parts = incoming[0], incoming[1:]
        lengths = self.lengths_tokens[::-1] if direction else self.lengths_tokens
        passage = None if self.passages is None else self.passages[direction]
        for place, added in enumerate(parts):
            if place:
                state = system.advance(state, lengths[place])
                if passage is not None:
                    state = _kept(state, passage.through[place] & passage.joined[place])
            state = state + added
        return state if passage is None else _kept(state, passage.joined[len(parts)])


def _kept(state: Tensor, rows: Tensor) -> Tensor:
    """Return a state with the rows that are not kept set to zero."""
    return state.masked_fill(~rows.view(-1, *[1] * (state.ndim - 1)), 0)


def passages_of(
    segment_ids: Tensor, edges: Sequence[Tensor], *, causal: bool
) -> tuple[Passage, ...]:
    """Find out where documents let a state pass.

    Args:
        segment_ids: Of this part, int64 [B, L].
        edges: Of each rank's part, int64 [B, 3]: first id, last id, whether it is one document.
        causal: Whether only the past is wanted.
    """
    changes = segment_ids[:, 1:] != segment_ids[:, :-1]
    runs = torch.nn.functional.pad(changes.cumsum(dim=1), (1, 0))
    first_run, last_run = runs == 0, runs == runs[:, -1:]
    table = torch.stack(list(edges))  # [R, B, 3]
    through = table[:, :, 2] > 0
    same = table[1:, :, 0] == table[:-1, :, 1]  # [R - 1, B]
    nobody = torch.zeros_like(through[:1])
    past = Passage(last_run, first_run, through, torch.cat([nobody, same]))
    if causal:
        return (past,)
    future = Passage(first_run, last_run, through.flip(0), torch.cat([nobody, same.flip(0)]))
    return past, future
