"""Telling others without waiting for them: no network and no other library can hold up a step."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from pretrain.telemetry.histograms import Histogram
from pretrain.telemetry.sinks import MetricsSink

_MOST_WAITING = 10_000


class BackgroundSink:
    """Hands everything to another sink in a thread of its own, in order.

    What the other sink raises is said once and goes no further. While it is slower than the run,
    up to 10,000 things wait for it; what comes on top is left out and counted.

    Args:
        name: Of the place, for messages.
        make: Opens the other sink, in the thread.
        warn: Told of failures, from the thread.
        closing_seconds: How long to wait at the end for what has not been taken.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], MetricsSink],
        warn: Callable[[str], None],
        *,
        closing_seconds: float,
    ) -> None:
        self._name, self._make, self._warn = name, make, warn
        self._closing_seconds = closing_seconds
        self._waiting: queue.Queue[Callable[[MetricsSink], None] | None] = queue.Queue(
            _MOST_WAITING
        )
        self._left_out = 0
        self._has_failed = False
        # A daemon: a place that never answers must not keep a finished run alive.
        self._thread = threading.Thread(target=self._work, name=f"telemetry-{name}", daemon=True)
        self._thread.start()

    def write(self, record: Mapping[str, Any]) -> None:
        """Pass a record on."""
        kept = dict(record)
        self._pass_on(lambda sink: sink.write(kept))

    def text(self, name: str, text: str, step: int) -> None:
        """Pass a text on."""
        self._pass_on(lambda sink: sink.text(name, text, step))

    def histogram(self, name: str, values: Histogram, step: int) -> None:
        """Pass a histogram on."""
        self._pass_on(lambda sink: sink.histogram(name, values, step))

    def go_back(self, step: int) -> None:
        """Pass on that steps are made again."""
        self._pass_on(lambda sink: sink.go_back(step))

    def close(self, *, finished: bool) -> None:
        """Let the other sink take what waits and close; give up after a while."""
        deadline = time.monotonic() + self._closing_seconds
        for action in (lambda sink: sink.close(finished=finished), None):
            if self._thread.is_alive():
                with contextlib.suppress(queue.Full):
                    self._waiting.put(action, timeout=max(0.0, deadline - time.monotonic()))
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            seconds = f"{self._closing_seconds:.0f} s"
            self._warn(f"{self._name} did not take the last records in {seconds}")
        if self._left_out:
            self._warn(f"{self._name} was too slow for {self._left_out} records")

    def _pass_on(self, action: Callable[[MetricsSink], None]) -> None:
        if not self._thread.is_alive():
            return  # it could not be opened, which was said
        try:
            self._waiting.put_nowait(action)
        except queue.Full:
            self._left_out += 1

    def _work(self) -> None:
        try:
            sink = self._make()
        except Exception as error:
            self._say(error, "the run goes on without it")
            return
        while (action := self._waiting.get()) is not None:
            try:
                action(sink)
            except Exception as error:
                self._say(error, "the run goes on, what comes later is tried again")

    def _say(self, error: Exception, consequence: str) -> None:
        if self._has_failed:
            return
        self._has_failed = True
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        self._warn(f"{self._name}: {reason[:300]}; {consequence}")
