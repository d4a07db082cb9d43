"""The figure that compares runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pretrain.report.curves import series, smoothed
from pretrain.report.run_figures import INK, drawable, style_axes
from pretrain.report.run_record import RunRecord

_COLORS = ("#3b6fb6", "#d1495b", "#2a9d8f", "#e09f3e", "#6a4c93", "#7a8794", "#8c5a3c", "#c77dbb")
_DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
_BEYOND_START = 20
"""The frame begins at the height of the curves after this part of them: what the first steps lose
is the same in all runs and would flatten what differs."""


def comparison_figure(runs: Sequence[RunRecord]) -> Figure:
    """Draws losses over steps and over tokens, speed and learning rate, a colour a run."""
    figure = Figure(figsize=(12.0, 7.4), layout="constrained")
    top, bottom = figure.subplots(2, 2, height_ratios=[3, 2])
    for number, run in enumerate(runs):
        look = _look(number)
        _draw_losses(top[0], run, "step", look)
        _draw_losses(top[1], run, "tokens_seen", look)
        for axes, key in ((bottom[0], "tokens_per_second"), (bottom[1], "learning_rate")):
            axes.plot(*series(run.curves.train, key), linewidth=1.3, **look)
    for axes, along in ((top[0], "step"), (top[1], "tokens_seen")):
        _leave_out_the_start(axes, runs, along)
        style_axes(axes, "denoising loss (nats per token)")
    for axes, label in ((bottom[0], "tokens per second"), (bottom[1], "learning rate")):
        axes.set_ylim(bottom=0)
        style_axes(axes, label)
    for axes, label in zip(
        (*top, *bottom), ("step", "tokens of text seen", "step", "step"), strict=True
    ):
        axes.set_xlabel(label, color=INK, fontsize=9)
    _name_runs(figure, top[0], runs)
    return figure


def _look(number: int) -> dict[str, Any]:
    """How the lines of a run are drawn: colours first, then kinds of lines."""
    return {
        "color": _COLORS[number % len(_COLORS)],
        "linestyle": _DASHES[number // len(_COLORS) % len(_DASHES)],
    }


def _draw_losses(axes: Axes, run: RunRecord, along: str, look: dict[str, Any]) -> None:
    """The smoothed training loss, the held-out loss with dots, and marks of starts."""
    places, losses = series(run.curves.train, "loss", along)
    losses = smoothed(losses)
    axes.plot(places, losses, linewidth=1.8, **look)
    if along == "step":
        axes.plot(*series(run.curves.evaluations, "eval/heldout/loss"), linewidth=0.9, marker="o",
                  markersize=3.5, alpha=0.8, **look)  # fmt: skip
        for steps, marker in ((run.curves.resumed_at, "^"), (run.roll_backs, "v")):
            at = np.array(steps, dtype=np.float64)
            if len(places):
                axes.plot(at, np.interp(at, places, losses), marker, color=look["color"],
                          markersize=10, markeredgecolor="white", zorder=4)  # fmt: skip


def _leave_out_the_start(axes: Axes, runs: Sequence[RunRecord], along: str) -> None:
    """Bounds the axis from above where the curves are long enough to have a start."""
    heights, lowest = [], []
    for run in runs:
        _, losses = series(run.curves.train, "loss", along)
        if len(losses) >= 2 * _BEYOND_START:
            losses = smoothed(losses)
            heights.append(float(losses[len(losses) // _BEYOND_START :].max()))
            lowest.append(float(losses.min()))
    if heights and max(heights) > min(lowest):
        axes.set_ylim(top=max(heights) + 0.05 * (max(heights) - min(lowest)))


def _name_runs(figure: Figure, axes: Axes, runs: Sequence[RunRecord]) -> None:
    """The legend above all panels. The number goes first: a name that begins with _ is hidden."""
    lines = [axes.plot([], [], linewidth=2, **_look(number))[0] for number in range(len(runs))]
    labels = [f"{number}. {drawable(run.name)}" for number, run in enumerate(runs, 1)]
    legend = figure.legend(
        lines, labels, loc="outside upper left", ncols=4, frameon=False, fontsize=9, labelcolor=INK
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
