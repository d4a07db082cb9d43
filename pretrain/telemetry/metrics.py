"""What a run tells: ``metrics.jsonl``, TensorBoard, and a progress line. Rank 0 only."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pretrain.run_folder import RunFolder, write_atomically

_NOT_PLOTTED = ("step", "event")


def drop_later_lines(path: Path, step: int) -> None:
    """Forget what was logged after a step: the run is about to make these steps again.

    Args:
        path: ``metrics.jsonl``; a last line cut short by a kill is dropped as well.
        step: The step that is resumed from; its own lines stay.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if value["step"] <= step:
            kept.append(line + "\n")
    write_atomically(path, "".join(kept))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a ``metrics.jsonl``; a line still being written is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


class MetricsWriter:
    """Writes each record to ``metrics.jsonl`` and, number by number, to TensorBoard.

    Args:
        folder: The run's folder.
        start_step: The step resumed from; later TensorBoard events are hidden.
    """

    def __init__(self, folder: RunFolder, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        drop_later_lines(folder.metrics_path, start_step)
        self._stream: TextIO = folder.metrics_path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder.tensorboard), purge_step=start_step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Write one record; it carries ``step``."""
        self._stream.write(json.dumps(record) + "\n")
        self._stream.flush()
        for key, value in record.items():
            if key not in _NOT_PLOTTED and isinstance(value, int | float):
                self._board.add_scalar(key, value, record["step"])

    def close(self) -> None:
        """Flush and close both."""
        self._stream.close()
        self._board.close()


class ProgressLine:
    """A bar with ETA on a terminal, a plain line every ten seconds elsewhere.

    Args:
        start_step: Steps made before this start.
        max_steps: Steps of the whole run.
        silent: Whether to print nothing, as every rank but the first does.
    """

    INTERVAL_SECONDS = 10.0

    def __init__(self, start_step: int, max_steps: int, *, silent: bool) -> None:
        self._silent = silent
        self._start_step, self._max_steps = start_step, max_steps
        self._start = self._last = time.monotonic()
        self._bar: Progress | None = None
        if not silent and sys.stdout.isatty():
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[state]}"),
                console=Console(),
            )
            self._task = self._bar.add_task("", total=max_steps, completed=start_step, state="")
            self._bar.start()

    def update(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Show that a step was made."""
        if self._silent:
            return
        state = f"loss {loss:.4f}  {tokens_per_second:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, state=state)
            return
        now = time.monotonic()
        if now - self._last < self.INTERVAL_SECONDS and step < self._max_steps:
            return
        self._last = now
        seconds_per_step = (now - self._start) / max(1, step - self._start_step)
        remaining = seconds_per_step * (self._max_steps - step)
        print(f"step {step}/{self._max_steps}  {state}  {remaining:.0f} s left", flush=True)

    def say(self, text: str) -> None:
        """Print a line of its own."""
        if self._silent:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
