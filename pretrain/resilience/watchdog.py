"""A rank that makes no progress ends itself, and says what it was doing."""

from __future__ import annotations

import faulthandler
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TextIO

from pretrain.resilience.awake_time import AwakeClock
from pretrain.resilience.collectives import CollectiveRecorder
from pretrain.resilience.ending import HUNG_EXIT_CODE, end_process, stacks_path
from pretrain.resilience.settings import WatchdogSettings

_LONGEST_TICK_SECONDS = 1.0
_STARVED_SECONDS = 15.0
"""After so long without a turn for the watching thread, the stacks are written without it."""


class Watchdog:
    """Watches over the signs of life of this rank's main thread, from a thread of its own.

    A call that never returns does not keep it from acting, as long as it lets other threads run.
    Where one does not, the stacks are still written, by a thread that needs no interpreter, and
    the other ranks miss this one's signs of life (:mod:`pretrain.resilience.liveness`).
    """

    def __init__(
        self,
        settings: WatchdogSettings,
        *,
        rank: int,
        log_folder: Path,
        recorder: CollectiveRecorder,
    ) -> None:
        """Start watching, unless the settings have it switched off.

        Args:
            settings: The limits.
            rank: This process's rank.
            log_folder: Folder for ``rank-NNNNN-stacks.txt``; it exists.
            recorder: Knows the last collective operations.

        Raises:
            OSError: If the file cannot be written.
        """
        self.announce: Callable[[str], None] | None = None
        """Told the reason before this rank ends, to tell the others."""
        self._settings = settings
        self._rank = rank
        self._path = stacks_path(log_folder, rank)
        self._recorder = recorder
        self._limit_seconds = settings.first_step_seconds
        self._beats = 0
        self._activity = "start"
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        if settings.enabled:
            # Held open: when it is needed, files may not be openable any more.
            stream = self._path.open("a", encoding="utf-8")
            self._thread = threading.Thread(
                target=self._watch, args=(stream,), name="watchdog", daemon=True
            )
            self._thread.start()

    def beat(self, activity: str) -> None:
        """Give a sign of life; costs a tenth of a microsecond.

        Args:
            activity: What begins now, for the message: "micro-step 3 of step 17".
        """
        self._activity = activity
        self._beats += 1

    def first_step_done(self) -> None:
        """From now on the tight limit holds."""
        self._limit_seconds = self._settings.step_seconds
        self._beats += 1

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _watch(self, stream: TextIO) -> None:
        tick_seconds = min(_LONGEST_TICK_SECONDS, self._settings.step_seconds / 10)
        clock = AwakeClock(tick_seconds)
        beats, last_beat = self._beats, clock.seconds()
        with stream:
            while not self._closed.wait(tick_seconds):
                # Expires only where this thread gets no turn; after a suspension, to no harm.
                faulthandler.dump_traceback_later(_STARVED_SECONDS, file=stream)
                now = clock.seconds()
                if self._beats != beats:
                    beats, last_beat = self._beats, now
                elif now - last_beat > self._limit_seconds:
                    self._end(now - last_beat)
            faulthandler.cancel_dump_traceback_later()
        if self._path.stat().st_size == 0:
            self._path.unlink()

    def _end(self, silent_seconds: float) -> None:
        reason = f"no progress for {silent_seconds:.0f} s, in: {self._activity}"
        announce = self.announce
        told = f"rank {self._rank}: {reason}; ends with exit code {HUNG_EXIT_CODE}"
        end_process(
            HUNG_EXIT_CODE,
            self._rank,
            reason,
            self._path.parent,
            self._recorder.lines,
            None if announce is None else lambda: announce(told),
        )
