"""The figures of a run's report, drawn from ``metrics.jsonl``."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_INK = "#1c2733"
_FAINT = "#d7dde3"
_TRAIN = "#3b6fb6"
_HELDOUT = "#d1495b"
_BASELINE = "#7a8794"
_RESUME = "#2a9d8f"
_GROUPS = ("#3b6fb6", "#e09f3e", "#6a4c93", "#2a9d8f")
_MOST_POINTS = 2000


@dataclass(frozen=True)
class Curves:
    """The lines of ``metrics.jsonl``, sorted by what they say.

    Attributes:
        train: Lines of training steps.
        evaluations: Lines of held-out evaluations.
        resumed_at: Steps after which the run was resumed.
    """

    train: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    resumed_at: list[int]

    @classmethod
    def from_metrics(cls, lines: Sequence[dict[str, Any]]) -> Curves:
        """Sorts lines; those of another kind, or without a step, are passed over."""
        known = [line for line in lines if isinstance(line.get("step"), int)]
        return cls(
            train=[line for line in known if isinstance(line.get("loss"), (int, float))],
            evaluations=[line for line in known if "eval/heldout/loss" in line],
            resumed_at=[line["step"] for line in known if line.get("event") == "resume"],
        )


def series(lines: Sequence[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Takes one quantity out of lines, thinned for drawing.

    Args:
        lines: Lines with ``step``.
        key: The quantity; lines without it, or with a value that is no finite number, are left
            out.

    Returns:
        Steps and values, float64[n], n at most 2000: means over runs of neighbours.
    """
    pairs = [
        (line["step"], line[key])
        for line in lines
        if isinstance(line.get(key), (int, float)) and np.isfinite(line[key])
    ]
    points = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    if len(points) > _MOST_POINTS:
        edges = np.linspace(0, len(points), _MOST_POINTS + 1).astype(int)[:-1]
        widths = np.diff(np.append(edges, len(points)))[:, None]
        points = np.add.reduceat(points, edges) / widths
    return points[:, 0], points[:, 1]


def smoothed(values: np.ndarray) -> np.ndarray:
    """Averages each value with its neighbours, about a fiftieth of the curve to either side.

    Args:
        values: float64[n].

    Returns:
        float64[n]; the window shrinks at both ends, so that the ends are not bent.
    """
    reach = len(values) // 50
    sums = np.concatenate([[0.0], np.cumsum(values)])
    positions = np.arange(len(values))
    reaches = np.minimum(reach, np.minimum(positions, positions[::-1]))
    means: np.ndarray = (sums[positions + reaches + 1] - sums[positions - reaches]) / (
        2 * reaches + 1
    )
    return means


def _style(axes: Axes, label: str) -> None:
    axes.set_ylabel(label, color=_INK, fontsize=9)
    axes.tick_params(colors=_INK, labelsize=8, length=0, pad=5)
    axes.grid(True, color=_FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_FAINT)


def _mark_resumes(axes: Axes, resumed_at: Sequence[int], *, named: bool) -> None:
    for position, step in enumerate(resumed_at):
        label = "stopped and resumed" if named and position == 0 else None
        axes.axvline(step, color=_RESUME, linewidth=1.2, linestyle=(0, (1, 2)), label=label)


def _loss_axes(axes: Axes, curves: Curves) -> None:
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
    _mark_resumes(axes, curves.resumed_at, named=True)
    _style(axes, "denoising loss (nats per token)")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=_INK, loc="upper right")
    else:
        axes.text(0.5, 0.5, "no step yet", transform=axes.transAxes, ha="center", color=_BASELINE)


def _rate_axes(axes: Axes, curves: Curves) -> None:
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
        axes.legend(frameon=False, fontsize=8, labelcolor=_INK, loc="upper right")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    axes.yaxis.get_offset_text().set_fontsize(8)
    axes.set_ylim(bottom=0)
    _mark_resumes(axes, curves.resumed_at, named=False)
    _style(axes, "learning rate")
    axes.set_xlabel("step", color=_INK, fontsize=9)


def loss_figure(curves: Curves, title: str) -> Figure:
    """Draws the loss above the learning rate, with the points at which the run was resumed.

    Args:
        curves: What to draw; may be empty.
        title: Heading, taken literally.
    """
    figure = Figure(figsize=(9.0, 5.6), layout="constrained")
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    _loss_axes(loss, curves)
    _rate_axes(rate, curves)
    loss.set_title(title, loc="left", color=_INK, fontsize=12, fontweight="bold", pad=12,
                   parse_math=False)  # fmt: skip
    return figure


def engine_figure(curves: Curves) -> Figure | None:
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
        _mark_resumes(axes, curves.resumed_at, named=False)
        _style(axes, label)
    for axes in grid[len(known) :]:
        axes.set_visible(False)
    return figure


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
