"""A request to stop, remembered until the loop reaches a step's end.

Only the standard library is imported here, so that a worker listens before it loads torch.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

STOPPED_EXIT_CODE = 75
"""Exit code of a run that stopped on request and can be resumed (``EX_TEMPFAIL``)."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Turns SIGTERM, SIGINT and SIGUSR1 into a flag.

    A second SIGINT ends the process at once: whoever presses Ctrl-C twice does not want to wait
    for a checkpoint, and the last complete one is safe.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def install(self) -> StopRequest:
        """Take over the signals of this process."""
        for number in SIGNALS:
            signal.signal(number, self._remember)
        return self

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self.signal_name is not None

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal_name == "SIGINT":
            os._exit(130)
        self.signal_name = signal.Signals(number).name
