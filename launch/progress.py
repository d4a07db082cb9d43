"""Shows how far a long piece of work is: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Any

from launch.console import human_bytes, human_seconds, is_terminal, say

if TYPE_CHECKING:
    from data_pipeline.progress import Progress

_LINE_SECONDS = 5.0
# Rates are those of the last while, so that work found done at the start does not count for long.
_RATE_SECONDS = 20.0
_LEAST_RATE_SECONDS = 1.0


class ProgressDisplay:
    """A callback for the data rooms' progress; use it as a context manager.

    Args:
        silent: Show nothing, as every MPI rank but the first does.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self._silent = silent
        self._stage = ""
        self._bar: Any = None
        self._task: Any = None
        self._said_at = time.monotonic()
        self._recent: deque[tuple[float, Progress]] = deque()

    def __enter__(self) -> ProgressDisplay:
        if not self._silent and is_terminal():
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[amount]}"),
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Shows one state."""
        if self._silent:
            return
        amount = ", ".join([_amount(progress), *self._rates(progress)])
        if self._bar is not None:
            if progress.stage != self._stage:
                if self._task is not None:
                    self._bar.remove_task(self._task)
                self._task = self._bar.add_task(progress.stage, total=None, amount="")
            self._bar.update(
                self._task, completed=progress.done, total=progress.total, amount=amount
            )
        elif (
            progress.done == 0 and progress.total and progress.stage != self._stage
        ) or time.monotonic() - self._said_at > _LINE_SECONDS:
            self._said_at = time.monotonic()
            say(f"{progress.stage}: {amount}")
        self._stage = progress.stage

    def _rates(self, progress: Progress) -> list[str]:
        """Says how fast it goes and how long it will take, once enough has been seen."""
        now = time.monotonic()
        if self._recent and self._recent[-1][1].stage != progress.stage:
            self._recent.clear()
        self._recent.append((now, progress))
        while len(self._recent) > 2 and now - self._recent[1][0] > _RATE_SECONDS:
            self._recent.popleft()
        since, first = self._recent[0]
        seconds = now - since
        if seconds < _LEAST_RATE_SECONDS:
            return []
        done = (progress.done - first.done) / seconds
        rates = []
        for name in ("documents", "tokens"):
            rate = (getattr(progress, name) - getattr(first, name)) / seconds
            if rate:
                rates.append(f"{_count(rate)} {name}/s")
        if progress.unit == "bytes":
            rates.append(f"{done / 1e6:.1f} MB/s")
        elif done and not rates:
            rates.append(f"{_count(done)} {progress.unit}/s")
        if progress.total is not None and done > 0:
            rates.append(f"{human_seconds((progress.total - progress.done) / done)} left")
        return rates


def _count(number: float) -> str:
    return f"{number / 1e6:.2f} M" if number >= 1e6 else f"{number:,.0f}"


def _amount(progress: Progress) -> str:
    """Writes what is done, in the progress's unit."""
    if progress.unit == "bytes":
        done, total = human_bytes(progress.done), human_bytes(progress.total or 0)
    else:
        done, total = f"{progress.done:,}", f"{progress.total or 0:,} {progress.unit}"
    if progress.total is None:
        return done if progress.unit == "bytes" else f"{done} {progress.unit}"
    return f"{done} of {total}"
