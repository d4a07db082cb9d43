"""A request to stop, remembered until the loop comes to ask.

Only the standard library is imported here, so that a worker listens before it loads torch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from pathlib import Path
from types import FrameType

STOPPED_EXIT_CODE = 75
"""Exit code of a run that stopped on request and can be resumed (``EX_TEMPFAIL``)."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

_INTERRUPTED_EXIT_CODE = 130
_FILE_INTERVAL_SECONDS = 0.5


class StopRequest:
    """Turns signals, a file and a time limit into a flag.

    A second SIGINT ends the process at once: whoever presses Ctrl-C twice does not want to wait
    for a checkpoint, and the last complete one is safe. It does so inside a long call of a library
    as well, since a thread of its own reads the signals: Python's handlers would wait for the
    call's end.
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._reason: str | None = None
        self._file: Path | None = None
        self._file_checked = -_FILE_INTERVAL_SECONDS
        self._deadline: float | None = None

    def install(self) -> StopRequest:
        """Take over the signals of this process; only its main thread may."""
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, _leave_to_the_thread)
        # A fork shares the socket: signals to a worker of the loader would count as ours.
        os.register_at_fork(after_in_child=_forget_socket)
        threading.Thread(
            target=self._listen, args=(receiver, sender), name="stop-signals", daemon=True
        ).start()
        return self

    def watch(
        self, *, file: Path | None = None, wall_clock_seconds: float | None = None
    ) -> StopRequest:
        """Hear more than signals.

        Args:
            file: Its existence is a request; looked for at most twice a second, so give it to
                rank 0 alone.
            wall_clock_seconds: Time from the making of this object to a request of its own.
        """
        self._file = file
        self._deadline = None if wall_clock_seconds is None else self._started + wall_clock_seconds
        return self

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop. Cheap: ask in every micro-step."""
        return self.reason is not None

    @property
    def reason(self) -> str | None:
        """Who asked first: a signal's name, ``STOP file`` or ``wall clock``; None if nobody did."""
        if self._reason is None:
            self._look()
        return self._reason

    def honoured(self) -> None:
        """Remove the file that asked, if one did, so that the same command goes on with the run.

        Call it when the checkpoint is written: until then a killed run still finds the request.
        """
        if self._reason == "STOP file" and self._file is not None:
            with contextlib.suppress(OSError):
                self._file.unlink()

    def _look(self) -> None:
        now = time.monotonic()
        if self._deadline is not None and now >= self._deadline:
            self._reason = "wall clock"
        elif self._file is not None and now - self._file_checked >= _FILE_INTERVAL_SECONDS:
            self._file_checked = now
            with contextlib.suppress(OSError):  # a file system that fails is no request
                if self._file.exists():
                    self._reason = "STOP file"

    def _listen(self, receiver: socket.socket, sender: socket.socket) -> None:
        """Read the signals' numbers as they come; the sender is held so that it stays open."""
        interrupts = 0
        while numbers := receiver.recv(64):
            for number in numbers:
                interrupts += number == signal.SIGINT
                if interrupts > 1:
                    os._exit(_INTERRUPTED_EXIT_CODE)
                if number in SIGNALS:
                    self._reason = self._reason or signal.Signals(number).name


def _leave_to_the_thread(number: int, frame: FrameType | None) -> None:
    """Python must have a handler, or the signal would not reach the thread either."""


def _forget_socket() -> None:
    signal.set_wakeup_fd(-1)
