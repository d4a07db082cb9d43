"""Tokens beside a part: whose they are. Arithmetic alone, which plans do without torch.

A halo is as wide as attention reaches. Where the neighbours' parts are shorter than that, it comes
from several of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Halo:
    """Where the tokens go and come from; arithmetic alone."""

    left_tokens: int
    """In front of the part."""
    length_tokens: int
    """L, of the part."""
    right_tokens: int
    """Behind the part."""
    sent: tuple[tuple[int, int], ...]
    """For each rank, the tokens of this part that it needs: first and behind the last."""
    received: tuple[tuple[int, int], ...]
    """For each rank, where its tokens stand among the W: first and behind the last."""

    @property
    def wide_tokens(self) -> int:
        """W = left + L + right."""
        return self.left_tokens + self.length_tokens + self.right_tokens

    @property
    def num_sent(self) -> int:
        """Tokens sent, each as often as it is sent."""
        return sum(stop - start for start, stop in self.sent)


def make_halo(lengths_tokens: Sequence[int], rank: int, left: int, right: int) -> Halo:
    """Describe the halo of a part.

    Args:
        lengths_tokens: Of the parts of all ranks.
        rank: Whose halo.
        left: Tokens wanted in front, as far as there are any.
        right: Tokens wanted behind.
    """
    ends = list(accumulate(lengths_tokens))
    starts = [end - length for end, length in zip(ends, lengths_tokens, strict=True)]
    total, nothing = ends[-1], (0, 0)

    def wide(place: int) -> tuple[int, int]:
        return max(0, starts[place] - left), min(total, ends[place] + right)

    def overlap(owner: int, reader: int, origin: int) -> tuple[int, int]:
        low, high = wide(reader)
        first, behind = max(low, starts[owner]), min(high, ends[owner])
        return (first - origin, behind - origin) if first < behind and owner != reader else nothing

    ranks, (low, high) = range(len(ends)), wide(rank)
    return Halo(
        left_tokens=starts[rank] - low,
        length_tokens=lengths_tokens[rank],
        right_tokens=high - ends[rank],
        sent=tuple(overlap(rank, reader, starts[rank]) for reader in ranks),
        received=tuple(overlap(owner, rank, low) for owner in ranks),
    )
