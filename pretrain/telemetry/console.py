"""What a run says on the terminal: a bar or plain lines, and a table at evaluations."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_EVALUATION = "eval/"


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

    def go_back(self, step: int) -> None:
        """Count on from an earlier step; what is left is estimated anew."""
        self._start_step, self._start = step, time.monotonic()
        if self._bar is not None:
            self._bar.reset(self._task, total=self._max_steps, completed=step)

    def say(self, text: str) -> None:
        """Print a line of its own."""
        if self._silent:
            return
        if self._bar is not None:
            self._bar.console.print(printable(text), markup=False, highlight=False)
        else:
            print(printable(text), flush=True)

    def table(self, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; its first column holds names, the others numbers."""
        if self._silent:
            return
        # Texts, so that brackets in a name are no markup.
        table = Table(title=Text(printable(title)), title_justify="left", box=box.SIMPLE_HEAD)
        for number, name in enumerate(head):
            table.add_column(Text(printable(name)), justify="right" if number else "left")
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        console = self._bar.console if self._bar is not None else Console(file=sys.stdout)
        if not console.is_terminal:
            console.width = 10_000  # a log is no place to break lines
        console.print(table)
        sys.stdout.flush()

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


def printable(text: str) -> str:
    """A text without what a terminal would obey, such as escape sequences from a document."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def evaluation_table(
    record: Mapping[str, float], before: Mapping[str, float] | None = None
) -> tuple[list[str], list[list[str]]]:
    """Arrange an evaluation as a table: a row a held-out set and objective, a column a metric.

    Args:
        record: ``eval/NAME/METRIC`` or ``eval/NAME/OBJECTIVE/METRIC`` to the value; other keys
            are left out.
        before: The evaluation before, whose losses are subtracted in the last column.

    Returns:
        Head and rows; the column ``loss`` comes first, the others in the order of the record.
    """
    values: dict[str, dict[str, float]] = {}
    for key, value in record.items():
        if key.startswith(_EVALUATION):
            name, _, metric = key.removeprefix(_EVALUATION).rpartition("/")
            values.setdefault(name, {})[metric] = value
    found = dict.fromkeys(metric for row in values.values() for metric in row)
    metrics = sorted(found, key=lambda metric: metric != "loss")
    rows = []
    for name, row in values.items():
        cells = [f"{row[metric]:.4f}" if metric in row else "" for metric in metrics]
        earlier = (before or {}).get(f"{_EVALUATION}{name}/loss")
        if before:
            change = "" if earlier is None or "loss" not in row else f"{row['loss'] - earlier:+.4f}"
            cells.append(change)
        rows.append([name, *cells])
    titles = [metric.replace("_", " ") for metric in metrics]
    return ["held out", *titles, *(["change"] if before else [])], rows
