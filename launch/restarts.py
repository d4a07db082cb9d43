"""Whether, and when, ranks that failed are started again."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from launch.failures import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_RESUMABLE, EXIT_USAGE

_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Decision:
    """What to do after the ranks have ended.

    Attributes:
        restart: Start them again.
        wait_seconds: How long to wait before.
        say: A line for the user, or "".
    """

    restart: bool
    wait_seconds: float = 0.0
    say: str = ""


class Restarts:
    """Decides after each end of the ranks.

    Nothing is restarted that is done, has stopped on request or was called wrongly. What the run
    itself gave as an error (exit code 1: a mistake in the configuration, damaged data, a loss that
    is not finite) may come from a rank that lost another, and so is tried once more; twice in a
    row without a newer checkpoint in between it would happen for ever. Processes that were killed,
    hung, or lost one another are tried again as often as allowed, since clusters heal. Each newer
    checkpoint gives all tries back, so a run of a month survives any number of failures that it
    outruns.

    Attributes:
        total: Restarts so far.
    """

    def __init__(self, max_in_vain: int, step: int) -> None:
        """Begin to count.

        Args:
            max_in_vain: Restarts allowed in a row without a newer checkpoint.
            step: Of the newest complete checkpoint, -1 without one.
        """
        self.total = 0
        self._max_in_vain = max_in_vain
        self._in_vain = 0
        self._step = step
        self._code_before: int | None = None

    def decide(self, exit_code: int, step: int, *, asked_to_stop: bool) -> Decision:
        """Decide after an end.

        Args:
            exit_code: Of the ranks together; negative for a signal.
            step: Of the newest complete checkpoint now, -1 without one.
            asked_to_stop: Somebody wants the run to end.
        """
        if exit_code in (0, EXIT_RESUMABLE) or asked_to_stop or self._max_in_vain == 0:
            return Decision(False)
        if exit_code in (EXIT_USAGE, EXIT_INTERRUPTED, 128 + signal.SIGTERM):
            return Decision(False)
        if step > self._step:
            self._step, self._in_vain, self._code_before = step, 0, None
        if exit_code == self._code_before == EXIT_FAILED:
            return Decision(False, say="not restarted: failed twice in the same way, no newer step")
        if self._in_vain == self._max_in_vain:
            times = f"{self._in_vain} restart{'s' if self._in_vain > 1 else ''}"
            return Decision(False, say=f"not restarted: no newer checkpoint after {times}")
        wait_seconds = min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2**self._in_vain)
        self._code_before = exit_code
        self._in_vain += 1
        self.total += 1
        place = f"the checkpoint of step {step}" if step >= 0 else "the beginning"
        return Decision(
            True,
            wait_seconds,
            f"restart {self._in_vain} of {self._max_in_vain} in {wait_seconds:g} s from {place}: "
            f"the ranks ended with exit code {exit_code}",
        )
