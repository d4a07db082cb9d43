"""The tables of the network's benchmarks on disk, with the plots that they allow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import report
from benchmarks.common.report import Table

_TITLE = "The network beside its peers"


def write(out: Path, facts: dict[str, Any], tables: Sequence[Table]) -> list[Path]:
    """Write results.json, tables.md and the plots that the tables allow; return the files."""
    written = report.write(out, _TITLE, facts, tables)
    for name, quantity, label in (
        ("speed", "tokens/s", "encoder tokens a second"),
        ("memory", "MiB", "peak memory above weights and inputs, MiB"),
    ):
        rows = [row for table in tables if table.name == name for row in table.rows]
        if rows:
            written.append(_plot(out / f"{name}.png", rows, quantity, label))
    return written


def _plot(path: Path, rows: list[dict[str, Any]], quantity: str, label: str) -> Path:
    """One panel for each precision and pass, one line for each model, over the length."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((row["dtype"], row["pass"]) for row in rows))
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (dtype, run) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        chosen = [row for row in rows if (row["dtype"], row["pass"]) == (dtype, run)]
        for model in dict.fromkeys(row["model"] for row in chosen):
            points = [(row["length"], row[quantity]) for row in chosen if row["model"] == model]
            axes.plot(*zip(*points, strict=True), marker="o", label=model)
        axes.set(title=f"{dtype}, {run}", xlabel="length in tokens", ylabel=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=100)
    return path
