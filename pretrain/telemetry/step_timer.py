"""What a step's time goes into."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch.profiler import record_function

StepPart = Literal[
    "data", "forward", "backward", "optimizer", "communication", "checkpoint", "evaluation"
]
PARTS: tuple[StepPart, ...] = (
    "data",
    "forward",
    "backward",
    "optimizer",
    "communication",
    "checkpoint",
    "evaluation",
)
_ON_DEVICE = frozenset({"forward", "backward", "optimizer"})
# In which of them a rank works by itself, without waiting for others.
_OWN_ON_CPU: tuple[StepPart, ...] = ("data", "forward", "backward", "optimizer")
_OWN_ON_GPU: tuple[StepPart, ...] = ("data", "forward")


class StepTimer:
    """Counts the seconds of a step's parts; what is in none of them is `other`.

    Parts may lie within one another: the time of the inner one does not count for the outer.

    On a CPU a part lasts as long as its code. A GPU works through its commands later: there
    forward, backward and optimizer are measured between two events in its stream, whose times are
    read when they have passed, so that nothing waits for the GPU. Collectives run beside the
    computation there, and what the computation waits for them counts for the part it waits in;
    ``communication`` then holds nothing (the profiler shows it). The rest is time of the host.

    Each part also is a range of the profiler, ``step/NAME``.

    Args:
        device: Where the model is.
    """

    def __init__(self, device: torch.device) -> None:
        self.is_on_gpu = device.type == "cuda"
        self._seconds: dict[StepPart, float] = dict.fromkeys(PARTS, 0.0)
        self._open: list[_OpenPart] = []
        # Events of a GPU's stream: what part, its begin, its end.
        self._passing: deque[tuple[StepPart, Any, Any]] = deque()
        self._unused: list[Any] = []
        self._thread = threading.get_ident()
        self._steps = 0
        self._start = time.perf_counter()
        self.own_seconds = 0.0
        """Seconds a step that this rank worked and did not wait for others, as of the last
        `take`: data, forward, backward and optimizer on a CPU; on a GPU, where the last two wait
        for others, data and forward (which waits for others too under ZeRO 3)."""

    @contextlib.contextmanager
    def part(self, name: StepPart) -> Iterator[None]:
        """Count the time within for a part."""
        if threading.get_ident() != self._thread:
            yield  # the autograd engine's threads run beside the part that waits for them
            return
        with record_function(f"step/{name}"):
            if self.is_on_gpu and name in _ON_DEVICE:
                begin, end = self._event(), self._event()
                begin.record()
                try:
                    yield
                finally:
                    end.record()
                    self._passing.append((name, begin, end))
            else:
                with self._on_host(name):
                    yield

    @contextlib.contextmanager
    def _on_host(self, name: StepPart) -> Iterator[None]:
        opened = _OpenPart(time.perf_counter())
        self._open.append(opened)
        try:
            yield
        finally:
            self._open.pop()
            elapsed = time.perf_counter() - opened.start
            self._seconds[name] += elapsed - opened.inner_seconds
            if self._open:
                self._open[-1].inner_seconds += elapsed

    def step_done(self) -> None:
        """Count a step, and read the events that have passed."""
        self._steps += 1
        while self._passing and self._passing[0][2].query():
            self._read_first()

    def take(self) -> dict[str, float]:
        """Seconds a step of each part since the last call, for the metrics.

        On a GPU this waits for the last event, so call it where the loss has been read.

        Returns:
            ``time/NAME_seconds`` for every part and for `other`, which together are the time that
            passed. On a GPU the host may be ahead by part of a step, hence `other` is at least 0.
        """
        while self._passing:
            self._passing[0][2].synchronize()
            self._read_first()
        now = time.perf_counter()
        steps = max(1, self._steps)
        parts = {name: seconds / steps for name, seconds in self._seconds.items()}
        other = max(0.0, (now - self._start) / steps - sum(parts.values()))
        own = _OWN_ON_GPU if self.is_on_gpu else _OWN_ON_CPU
        self.own_seconds = sum(parts[name] for name in own)
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._steps, self._start = 0, now
        record = {f"time/{name}_seconds": value for name, value in parts.items()}
        return {**record, "time/other_seconds": other}

    def _event(self) -> Any:
        if self._unused:
            return self._unused.pop()
        return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def _read_first(self) -> None:
        name, begin, end = self._passing.popleft()
        self._seconds[name] += begin.elapsed_time(end) / 1000
        self._unused += [begin, end]


class _OpenPart:
    """A part whose end has not come."""

    __slots__ = ("inner_seconds", "start")

    def __init__(self, start: float) -> None:
        self.start = start
        self.inner_seconds = 0.0
