"""The figure of question (d): time of a token and peak memory against the length."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(tables: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    """Write ``scaling.png``.

    Args:
        tables: Rows by name of table; without ``scaling`` nothing is drawn.
        folder: Where to.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if "scaling" not in tables:
        return
    rows = [row for row in tables["scaling"] if row["ended"] is None]
    passes = list(dict.fromkeys(row["pass"] for row in rows))
    quantities = {"us/token": "CPU-microseconds a token", "MiB": "peak MiB above weights"}
    figure = Figure(figsize=(5 * len(passes), 8), layout="constrained")
    FigureCanvasAgg(figure)
    for line, (quantity, label) in enumerate(quantities.items()):
        for column, run in enumerate(passes):
            axes = figure.add_subplot(2, len(passes), line * len(passes) + column + 1)
            chosen = [row for row in rows if row["pass"] == run]
            for model in dict.fromkeys(row["model"] for row in chosen):
                points = [(row["tokens"], row[quantity]) for row in chosen if row["model"] == model]
                axes.plot(*zip(*points, strict=True), marker="o", label=model)
            axes.set(title=run, xlabel="length in tokens", ylabel=label)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.grid(visible=True, alpha=0.3)
            axes.legend(fontsize="small")
    figure.savefig(folder / "scaling.png", dpi=100)
