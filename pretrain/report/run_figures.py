"""The figures of one run's report, drawn from ``metrics.jsonl``."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pretrain.report.curves import Curves, series, smoothed

INK = "#1c2733"
FAINT = "#d7dde3"
_TRAIN = "#3b6fb6"
_HELDOUT = "#d1495b"
_BASELINE = "#7a8794"
_RESUME = "#2a9d8f"
_ROLL_BACK = "#d1495b"
_GROUPS = ("#3b6fb6", "#e09f3e", "#6a4c93", "#2a9d8f")


def style_axes(axes: Axes, label: str) -> None:
    """Gives axes the look of all figures.

    Args:
        axes: What is drawn into.
        label: Of the vertical axis.
    """
    axes.set_ylabel(label, color=INK, fontsize=9)
    axes.tick_params(colors=INK, labelsize=8, length=0, pad=5)
    axes.grid(True, color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)


def _mark(
    axes: Axes, resumed_at: Sequence[int], roll_backs: Sequence[int], *, named: bool = False
) -> None:
    kinds = (
        (resumed_at, _RESUME, "stopped and resumed"),
        (roll_backs, _ROLL_BACK, "rolled back to here"),
    )
    for steps, color, label in kinds:
        for position, step in enumerate(steps):
            name = label if named and position == 0 else None
            axes.axvline(step, color=color, linewidth=1.2, linestyle=(0, (1, 2)), label=name)


def _loss_axes(axes: Axes, curves: Curves, roll_backs: Sequence[int]) -> None:
    steps, losses = series(curves.train, "loss")
    if len(steps):
        axes.plot(steps, losses, color=_TRAIN, linewidth=0.8, alpha=0.35)
        axes.plot(steps, smoothed(losses), color=_TRAIN, linewidth=1.8, label="training")
    at, heldout = series(curves.evaluations, "eval/heldout/loss")
    if len(at):
        axes.plot(at, heldout, color=_HELDOUT, linewidth=1.4, marker="o", markersize=5,
                  markeredgecolor="white", label="held out")  # fmt: skip
        axes.annotate(
            f"{heldout[-1]:.3f}", (at[-1], heldout[-1]), xytext=(7, 0), fontsize=8.5,
            textcoords="offset points", color=_HELDOUT, va="center", fontweight="bold",
        )  # fmt: skip
    _, unigram = series(curves.evaluations, "eval/heldout/unigram_loss")
    if len(unigram):
        axes.axhline(unigram[-1], color=_BASELINE, linewidth=1.4, linestyle=(0, (5, 3)),
                     label=f"unigram baseline {unigram[-1]:.3f}")  # fmt: skip
    axes.margins(x=0.06)
    _mark(axes, curves.resumed_at, roll_backs, named=True)
    style_axes(axes, "denoising loss (nats per token)")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="upper right")
    else:
        axes.text(0.5, 0.5, "no step yet", transform=axes.transAxes, ha="center", color=_BASELINE)


def _rate_axes(axes: Axes, curves: Curves, roll_backs: Sequence[int]) -> None:
    prefix = "learning_rate/"
    names = sorted({key for line in curves.train for key in line if key.startswith(prefix)})
    drawn: dict[bytes, str] = {}
    for key in names or ["learning_rate"]:
        steps, rates = series(curves.train, key)
        if not len(rates):
            continue
        name = key.removeprefix(prefix).replace("_", " ")
        # Groups with one and the same rate share a line and its name.
        drawn[rates.tobytes()] = ", ".join(filter(None, [drawn.get(rates.tobytes()), name]))
    for color, (data, name) in zip(_GROUPS * len(drawn), drawn.items(), strict=False):
        rates = np.frombuffer(data)
        steps = series(curves.train, (names or ["learning_rate"])[0])[0]
        axes.plot(steps[: len(rates)], rates, color=color, linewidth=1.5, label=name)
    if len(drawn) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper right")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    axes.yaxis.get_offset_text().set_fontsize(8)
    axes.set_ylim(bottom=0)
    _mark(axes, curves.resumed_at, roll_backs)
    style_axes(axes, "learning rate")
    axes.set_xlabel("step", color=INK, fontsize=9)


def loss_figure(curves: Curves, roll_backs: Sequence[int], title: str) -> Figure:
    """Draws the loss above the learning rate, and where the run was resumed or rolled back.

    Args:
        curves: What to draw; may be empty.
        roll_backs: Steps that the run went back to.
        title: Heading, taken literally.
    """
    figure = Figure(figsize=(9.0, 5.6), layout="constrained")
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    _loss_axes(loss, curves, roll_backs)
    _rate_axes(rate, curves, roll_backs)
    loss.set_title(drawable(title), loc="left", color=INK, fontsize=12, fontweight="bold", pad=12,
                   parse_math=False)  # fmt: skip
    return figure


def engine_figure(curves: Curves, roll_backs: Sequence[int]) -> Figure | None:
    """Draws gradient norm, speed, waiting and memory side by side; None where nothing is known."""
    panels = [
        ("grad_norm", "gradient norm", 1.0),
        ("tokens_per_second", "tokens per second", 1.0),
        ("data_wait_seconds", "waiting for data (ms per step)", 1e-3),
        ("memory_bytes", "memory of rank 0 (GiB)", 2.0**30),
    ]
    known = [panel for panel in panels if len(series(curves.train, panel[0])[0])]
    if not known:
        return None
    figure = Figure(figsize=(9.0, 2.3 * ((len(known) + 1) // 2)), layout="constrained")
    grid = figure.subplots((len(known) + 1) // 2, 2, squeeze=False).ravel()
    for axes, (key, label, unit) in zip(grid, known, strict=False):
        steps, values = series(curves.train, key)
        axes.plot(steps, values / unit, color=_TRAIN, linewidth=1.1)
        axes.set_ylim(0, max(1e-9, float(values.max()) / unit) * 1.15)
        _mark(axes, curves.resumed_at, roll_backs)
        style_axes(axes, label)
    for axes in grid[len(known) :]:
        axes.set_visible(False)
    return figure


def drawable(text: str) -> str:
    """A name as matplotlib can draw it: one line, not too long, nothing that is no character."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return line if len(line) <= 60 else f"{line[:59]}…"


def png(figure: Figure) -> bytes:
    """Renders a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def svg(figure: Figure) -> bytes:
    """Renders a figure as SVG with its text as paths, so that it looks alike everywhere."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()
