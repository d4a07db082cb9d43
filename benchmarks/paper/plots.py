"""Figures of all questions, made from the tables on disk, so that they can be drawn again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common.report import RESULTS, Table
from benchmarks.paper import pretraining_plot, scaling_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]


def read_tables(out: Path) -> list[Table]:
    """Return the tables that a folder holds."""
    path = out / RESULTS
    if not path.is_file():
        return []
    content = json.loads(path.read_text(encoding="utf-8"))
    return [
        Table(table["name"], table["title"], table["rows"], tuple(table["notes"]))
        for table in content["tables"]
    ]


def draw(out: Path) -> None:
    """Draw the figure of every question that a folder has tables of.

    Raises:
        ValueError: It has none.
    """
    tables = {table.name: table.rows for table in read_tables(out)}
    if not tables:
        raise ValueError(f"{out} holds no {RESULTS}; give the --out folder of an earlier run")
    for question, draw_one in (
        ("recall", _draw_recall),
        ("ablations", _draw_ablations),
        ("extrapolation", _draw_extrapolation),
    ):
        if question in tables:
            draw_one(tables, out / f"{question}.png")
    scaling_plot.draw(tables, out)
    pretraining_plot.draw(tables, out)


def _figure(width: float, height: float, panels: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * panels, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, panels, number + 1) for number in range(panels)]


def _unique(rows: Rows, name: str) -> list[Any]:
    return list(dict.fromkeys(row[name] for row in rows))


def _draw_recall(tables: dict[str, Rows], path: Path) -> None:
    """Accuracy against steps, one line for each variant and seed; ceilings as level lines."""
    figure, (axes,) = _figure(8, 5, 1)
    for number, variant in enumerate(_unique(tables["recall_curve"], "variant")):
        chosen = [row for row in tables["recall_curve"] if row["variant"] == variant]
        for count, row in enumerate(chosen):
            points = [(int(name), row[name]) for name in row if name.isdigit()]
            label = variant if count == 0 else None
            axes.plot(*zip(*points, strict=True), color=f"C{number}", label=label, alpha=0.8)
    ceilings = tables["recall_ceilings"]
    for row, style in ((ceilings[0], ":"), (ceilings[-1], "--")):
        label = f"best possible with {row['what that is']}"
        axes.axhline(row["best possible"], color="black", linestyle=style, label=label)
    axes.set(xlabel="steps", ylabel="share of right answers", ylim=(0, 1.05))
    axes.grid(visible=True, alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(path, dpi=100)


def _draw_ablations(tables: dict[str, Rows], path: Path) -> None:
    """Accuracy of each variant: the mean as a bar, seeds as points; the base as a line."""
    figure, (axes,) = _figure(8, 6, 1)
    rows = tables["ablations"]
    names = [f"{row['varied']}: {row['value']}" for row in rows]
    axes.barh(names, [row["accuracy"] for row in rows], color="C0", alpha=0.5)
    seeds = tables["ablations_seeds"]
    places = [f"{row['varied']}: {row['value']}" for row in seeds]
    axes.scatter([row["accuracy"] for row in seeds], places, color="C0", zorder=3)
    axes.axvline(rows[0]["accuracy"], color="black", linestyle="--")
    axes.axvline(0.25, color="black", linestyle=":")
    axes.invert_yaxis()
    axes.set(xlabel="share of right answers (dashed: base, dotted: chance)", xlim=(0, 1.05))
    axes.grid(visible=True, axis="x", alpha=0.3)
    figure.savefig(path, dpi=100)


def _draw_extrapolation(tables: dict[str, Rows], path: Path) -> None:
    """Answers around and behind against the length, and the loss of text against the context."""
    recall, text = tables["extrapolation"], tables["extrapolation_text"]
    figure, panels = _figure(5, 4.5, 3)
    for axes, kind in zip(panels, ("around", "behind"), strict=False):
        for network in _unique(recall, "network"):
            chosen = [row for row in recall if row["network"] == network]
            axes.plot(*_points(chosen, "length", kind), marker="o", label=network)
        axes.axhline(0.25, color="black", linestyle=":")
        axes.set(title=kind, xlabel="length in tokens", ylabel="right answers", ylim=(0, 1.05))
    for network in _unique(text, "network"):
        chosen = [row for row in text if row["network"] == network]
        contexts, changes = _points(chosen, "context", "change")
        (line,) = panels[2].plot(contexts, changes, marker="o", label=network)
        band = [[row[f"change {end}"] for row in chosen] for end in ("low", "high")]
        panels[2].fill_between(contexts, *band, color=line.get_color(), alpha=0.1)
    panels[2].set(
        title="held-out text", xlabel="context in bytes", ylabel="change of nats a byte, late"
    )
    for axes in panels:
        axes.set_xscale("log", base=2)
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=100)


def _points(rows: Sequence[dict[str, Any]], across: str, up: str) -> tuple[list[Any], list[Any]]:
    return [row[across] for row in rows], [row[up] for row in rows]
