"""What the benchmarks return, and how it is shown: text, JSON, Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULTS, MARKDOWN = "results.json", "tables.md"


@dataclass(frozen=True)
class Table:
    """Rows of one question's answer. All rows have a cell for each column, perhaps None."""

    name: str
    title: str
    rows: list[dict[str, Any]]
    notes: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """Column names in order of first appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def cells(self) -> list[list[str]]:
        """Return the rows as text."""
        return [[_text(row.get(name)) for name in self.columns] for row in self.rows]


def _text(value: Any) -> str:
    """A number with three significant digits; a dash for what was not measured."""
    if value is None:
        return "-"
    if isinstance(value, float):
        if value != 0 and not 1e-3 <= abs(value) < 1e6:
            return f"{value:.1e}"
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def show(table: Table) -> None:
    """Print a table with aligned columns."""
    cells = [table.columns, *table.cells()]
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.columns))]
    print(f"\n{table.title}")
    for row in cells:
        line = "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print(line.rstrip())
    for note in table.notes:
        print(f"  {note}")
    print(flush=True)


def markdown(title: str, facts: dict[str, Any], tables: Sequence[Table]) -> str:
    """Return everything as one Markdown page."""
    lines = [f"# {title}", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    for table in tables:
        lines += ["", f"## {table.title}", ""]
        lines.append("| " + " | ".join(table.columns) + " |")
        lines.append("|" + "---|" * len(table.columns))
        lines += ["| " + " | ".join(row) + " |" for row in table.cells()]
        lines += [f"\n{note}" for note in table.notes]
    return "\n".join(lines) + "\n"


def write(out: Path, title: str, facts: dict[str, Any], tables: Sequence[Table]) -> list[Path]:
    """Write results.json and tables.md; return the files."""
    out.mkdir(parents=True, exist_ok=True)
    content = {"facts": facts, "tables": [asdict(table) for table in tables]}
    (out / RESULTS).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (out / MARKDOWN).write_text(markdown(title, facts, tables), encoding="utf-8")
    return [out / RESULTS, out / MARKDOWN]
