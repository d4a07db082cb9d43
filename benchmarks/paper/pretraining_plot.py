"""The figure of question (e): held-out loss against processor time."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(tables: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    """Write ``pretraining.png``: a line for each network, a band from its best to its worst seed.

    Args:
        tables: Rows by name of table; without ``pretraining_curve`` nothing is drawn.
        folder: Where to.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if "pretraining_curve" not in tables:
        return
    curve = tables["pretraining_curve"]
    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for network in dict.fromkeys(row["network"] for row in curve):
        points = _over_seeds([row for row in curve if row["network"] == network])
        seconds, low, mean, high = zip(*points, strict=True)
        (line,) = axes.plot(seconds, mean, marker="o", label=network)
        axes.fill_between(seconds, low, high, alpha=0.2, color=line.get_color())
    for row in tables.get("pretraining", [])[:1]:
        axes.axhline(row["unigram loss"], color="gray", linestyle=":", label="unigram")
    axes.set(
        title="Denoising pretraining on long documents",
        xlabel="CPU-seconds of training",
        ylabel="held-out loss, nats a target token",
    )
    axes.set_xscale("log")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(folder / "pretraining.png", dpi=100)


def _over_seeds(curve: list[dict[str, Any]]) -> list[tuple[float, float, float, float]]:
    """Mean seconds, and lowest, mean and highest loss, of each point that all seeds have.

    Seeds are watched at the same steps, and last where each one's budget ended.
    """
    runs = [
        [row for row in curve if row["seed"] == seed]
        for seed in dict.fromkeys(row["seed"] for row in curve)
    ]
    common = set.intersection(*({row["steps"] for row in run[:-1]} for run in runs))
    groups = [
        [row for run in runs for row in run[:-1] if row["steps"] == steps]
        for steps in sorted(common)
    ]
    groups.append([run[-1] for run in runs])
    result = []
    for group in groups:
        losses = [row["loss"] for row in group]
        seconds = sum(row["CPU-seconds"] for row in group) / len(group)
        result.append((seconds, min(losses), sum(losses) / len(losses), max(losses)))
    return result
