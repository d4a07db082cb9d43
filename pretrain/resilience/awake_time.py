"""A clock that stands still while this process does."""

from __future__ import annotations

import time


class AwakeClock:
    """Seconds in which this process could run, as seen by a thread that asks regularly.

    A process that was suspended (SIGSTOP, ``scontrol suspend``, a machine put to sleep) finds hours
    gone by between two questions; of those only twice the usual interval counts.
    """

    def __init__(self, interval_seconds: float) -> None:
        """Start at 0; ``interval_seconds`` is how often it will be asked."""
        self._longest_seconds = 2 * interval_seconds
        self._asked = time.monotonic()
        self._seconds = 0.0

    def seconds(self) -> float:
        """Ask; only one thread may."""
        now = time.monotonic()
        self._seconds += min(now - self._asked, self._longest_seconds)
        self._asked = now
        return self._seconds
