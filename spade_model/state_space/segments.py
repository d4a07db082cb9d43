"""Where packed rows hold several documents: which tokens a state space may carry together.

A convolution over a packed row leaks from one document into the next, whatever mask attention has.
So every run of equal segment ids becomes a row of its own. Rows of similar length, within a factor
of two, are convolved together, padded to the longest of them; at most half of the work is padding.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Permute(torch.autograd.Function):
    """``y[i] = x[index[i]]`` or 0, whose adjoint is the same in the other direction.

    The indices are each other's inverse where both masks hold. Copying rows there and back is
    much faster than adding them up one by one, as the adjoint of a general gather has to.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, index: Tensor, taken: Tensor, inverse: Tensor, given: Tensor
    ) -> Tensor:
        ctx.save_for_backward(inverse, given)
        return x.index_select(0, index).masked_fill_(~taken[:, None], 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inverse, given = ctx.saved_tensors
        result = gradient.index_select(0, inverse).masked_fill_(~given[:, None], 0)
        return result, None, None, None, None


@dataclasses.dataclass(frozen=True)
class SegmentLayout:
    """The runs of a batch as rows, made once for all layers. T = B * L tokens, S slots."""

    shapes: tuple[tuple[int, int], ...]
    """Rows and length of each group; the slots of all groups follow one another."""
    token_of_slot: Tensor
    """Int64 [S]; the first token of the run where the slot is padding."""
    filled: Tensor
    """Bool [S], False where the slot is padding."""
    slot_of_token: Tensor
    """Int64 [T]; 0 where the token has none."""
    placed: Tensor
    """Bool [T], False for tokens of runs that are padding throughout."""

    @classmethod
    def from_ids(cls, segment_ids: Tensor, valid: Tensor | None) -> SegmentLayout:
        """Find the runs of equal ids; a run never crosses from one row to the next.

        Args:
            segment_ids: Int64 [B, L].
            valid: Bool [B, L], False where padded, or None. Runs without a valid token are left
                out, and their outputs are 0.
        """
        device = segment_ids.device
        # Sizes depend on the values: one transfer to the host instead of one for each of them.
        ids = segment_ids.cpu()
        num_tokens = ids.numel()
        begins = torch.ones(ids.shape, dtype=torch.bool, device="cpu")
        begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
        begins = begins.flatten()
        starts = begins.nonzero()[:, 0]
        ends = torch.cat([starts[1:], starts.new_tensor([num_tokens])])
        lengths = ends - starts
        if valid is not None:
            run_of_token = begins.cumsum(0) - 1
            counts = torch.zeros_like(starts)
            counts.index_add_(0, run_of_token, valid.cpu().flatten().long())
            starts, lengths = starts[counts > 0], lengths[counts > 0]
        shapes, tokens, masks = [], [], []
        longest = int(lengths.max()) if len(lengths) else 0
        for exponent in range(longest.bit_length() + 1):
            chosen = (lengths <= 1 << exponent) & (lengths > (1 << exponent) // 2)
            if bool(chosen.any()):
                first, sizes = starts[chosen, None], lengths[chosen, None]
                offsets = torch.arange(int(sizes.max()), device="cpu")
                inside = offsets < sizes
                shapes.append((inside.shape[0], inside.shape[1]))
                tokens.append(torch.where(inside, first + offsets, first).flatten())
                masks.append(inside.flatten())
        token_of_slot = torch.cat([starts[:0], *tokens])
        filled = torch.cat([begins[:0], *masks])
        slot_of_token = torch.zeros(num_tokens, dtype=torch.int64, device="cpu")
        slots = filled.nonzero()[:, 0]
        slot_of_token[token_of_slot[slots]] = slots
        placed = torch.zeros(num_tokens, dtype=torch.bool, device="cpu")
        placed[token_of_slot[slots]] = True
        return cls(
            tuple(shapes),
            *(x.to(device) for x in (token_of_slot, filled, slot_of_token, placed)),
        )

    @property
    def longest(self) -> int:
        """Tokens of the longest run, 0 without any."""
        return max((length for _, length in self.shapes), default=0)

    def gather(self, hidden: Tensor, valid: Tensor | None) -> tuple[Tensor, ...]:
        """Lay the runs of [B, L, H] out as one [rows, length, H] for each group, padding zeroed."""
        filled, placed = self.filled, self.placed
        if valid is not None:
            filled = filled & valid.flatten()[self.token_of_slot]
            placed = placed & valid.flatten()
        slots: Tensor = _Permute.apply(  # type: ignore[no-untyped-call]
            hidden.flatten(0, 1), self.token_of_slot, filled, self.slot_of_token, placed
        )
        sizes = [rows * length for rows, length in self.shapes]
        groups = zip(torch.split(slots, sizes), self.shapes, strict=True)
        return tuple(x.view(*shape, -1) for x, shape in groups)

    def scatter(self, groups: list[Tensor], shape: torch.Size) -> Tensor:
        """Put outputs for the groups back in their places in [B, L, …], 0 where there is no run."""
        slots = torch.cat([group.flatten(0, 1) for group in groups])
        tokens: Tensor = _Permute.apply(  # type: ignore[no-untyped-call]
            slots, self.slot_of_token, self.placed, self.token_of_slot, self.filled
        )
        return tokens.view(*shape[:2], -1)
