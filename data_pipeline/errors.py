"""The one exception by which this room tells a user what to change."""

from __future__ import annotations


class DataError(ValueError):
    """A problem with data or options that the user can solve; the message is one line."""

    def __init__(self, message: str) -> None:
        # Paths and document names come from outside and may hold line ends.
        super().__init__(" ".join(message.splitlines()))
