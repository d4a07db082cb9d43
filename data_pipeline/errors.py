"""The exceptions by which this room tells a user what to change."""

from __future__ import annotations

_MAXIMUM_CHARACTERS = 4000


class DataError(ValueError):
    """A problem with data or options that the user can solve; the message is one line."""

    def __init__(self, message: str) -> None:
        # Paths, names and values come from outside and may hold line ends, or be of any length.
        line = " ".join(message.splitlines())
        if len(line) > _MAXIMUM_CHARACTERS:
            half = _MAXIMUM_CHARACTERS // 2
            line = f"{line[:half]} ... {line[-half:]}"
        super().__init__(line)


class UnavailableError(DataError):
    """A remote side that gives no answer: nothing is damaged, so nothing is gone around."""


class DamageError(DataError):
    """Data that are not what was written: a run may go on without them.

    Attributes:
        shard_file: The shard.
        ranges: Its damaged tokens, as (first, behind the last) within the shard, or None for all.
    """

    def __init__(
        self, message: str, *, shard_file: str, ranges: tuple[tuple[int, int], ...] | None
    ) -> None:
        super().__init__(message)
        self.shard_file = shard_file
        self.ranges = ranges
