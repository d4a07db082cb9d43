"""What the command says: rich on a terminal, plain lines everywhere else.

A log file or a pipe gets one plain line per fact, so that it can be searched and compared; only a
terminal gets rules, tables and colour. Nothing here interprets markup: text may come from a user's
documents.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, TextIO


def is_terminal(stream: TextIO | None = None) -> bool:
    """Tells whether ``stream`` (default: standard output) is a terminal."""
    return (stream or sys.stdout).isatty()


def printable(text: str, *, limit: int | None = None) -> str:
    """Makes text from a document safe and short enough for a line on a terminal.

    Control characters (a document may hold escape sequences) become visible escapes; line ends
    become a return arrow.

    Args:
        text: Any text.
        limit: Longest result in characters; a longer text ends in an ellipsis.
    """
    characters = (
        character if character.isprintable() else repr(character)[1:-1]
        for character in text.replace("\n", "↵")
    )
    line = "".join(characters)
    return line if limit is None or len(line) <= limit else line[: limit - 1] + "…"


def say(text: str = "") -> None:
    """Prints one line at once, so that lines of child processes stay in order."""
    print(text, flush=True)


def warn(text: str) -> None:
    """Prints one line on standard error."""
    print(text, file=sys.stderr, flush=True)


def rule(title: str) -> None:
    """Announces a stage: a rule across the terminal, or a plain line."""
    if not is_terminal():
        say(f"== {title} ==")
        return
    from rich.console import Console
    from rich.text import Text

    Console().rule(Text(title), align="left")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table: framed on a terminal, aligned plain columns otherwise.

    Args:
        title: Heading; empty for none.
        columns: Column names.
        rows: Cells as text, one sequence a row.
    """
    if is_terminal():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        framed = Table(title=title or None, title_justify="left")
        for column in columns:
            framed.add_column(column, overflow="fold")
        for row in rows:
            framed.add_row(*(Text(cell) for cell in row))
        Console().print(framed)
        return
    if title:
        say(f"== {title} ==")
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    for row in [columns, *rows]:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_json(data: Any) -> None:
    """Prints data as JSON that any reader and any terminal encoding understands."""
    say(json.dumps(data, indent=2, default=str))


def human_bytes(count: float) -> str:
    """Writes a number of bytes with a binary unit: ``human_bytes(1536) == '1.5 KiB'``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable: the last unit takes everything")


def human_seconds(seconds: float) -> str:
    """Writes a duration: ``human_seconds(75) == '1 min 15 s'``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
