"""The training curve of a checkpoint: a few rows for people, and a picture beside the card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pretrain.report.curves import finite, is_step, smoothed

CURVE_FILE = "training-curve.png"
_HELDOUT = "eval/heldout/loss"
_ROWS = 8
_MOST_POINTS = 4096
_TRAIN_COLOR, _HELDOUT_COLOR = "#3b6fb6", "#d1495b"


class Point(NamedTuple):
    """A loss after a step; of training, the mean of a few steps up to it."""

    step: int
    loss: float
    tokens_seen: int | None = None


@dataclass
class Curve:
    """Losses of a run up to one of its checkpoints, and how it was judged there."""

    train: list[Point] = field(default_factory=list)
    """Evenly thinned to some thousand points."""
    heldout: list[Point] = field(default_factory=list)
    evaluation: dict[str, Any] | None = None
    """`step` and all `eval/…` numbers of the evaluation at the checkpoint's step."""


def read_curve(metrics: Path, last_step: int) -> Curve:
    """Read a ``metrics.jsonl`` of any length, of which little is kept.

    Args:
        metrics: The file; without it the curve is empty.
        last_step: The checkpoint's.
    """
    curve, joined, waiting = Curve(), 1, list[Point]()
    for record in _records(metrics):
        step, loss, heldout = record["step"], finite(record.get("loss")), record.get(_HELDOUT)
        if step > last_step:
            continue
        if loss is not None:
            tokens = record.get("tokens_seen")
            waiting.append(Point(step, loss, tokens if is_step(tokens) else None))
            if len(waiting) == joined:
                curve.train.append(_mean(waiting))
                waiting = []
        if len(curve.train) == _MOST_POINTS:
            pairs = zip(curve.train[::2], curve.train[1::2], strict=True)
            curve.train, joined = [_mean(list(pair)) for pair in pairs], 2 * joined
        if (value := finite(heldout)) is not None:
            curve.heldout.append(Point(step, value))
            if step == last_step:
                numbers = {key: x for key, x in record.items() if key.startswith("eval/")}
                curve.evaluation = numbers | {"step": step}
    if waiting:
        curve.train.append(_mean(waiting))
    return curve


def _records(metrics: Path) -> Iterator[dict[str, Any]]:
    """Lines that say what happened at a step."""
    if not metrics.is_file():
        return
    with metrics.open("rb") as stream:
        for line in stream:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # being written, or damaged
            if isinstance(record, dict) and is_step(record.get("step")):
                yield record


def _mean(points: list[Point]) -> Point:
    last = points[-1]
    return last._replace(loss=sum(point.loss for point in points) / len(points))


def curve_rows(curve: Curve) -> list[dict[str, Any]]:
    """A few rows from the first point to the last, ever farther apart.

    Returns:
        `step`, `tokens_seen`, `loss` (the mean of the training losses since the row before) and
        `heldout_loss` (the newest one since then); what is not known is None.
    """
    if not curve.train:
        return []
    count = len(curve.train)
    places = np.geomspace(1, count, num=min(_ROWS, count))
    rows, begin, after = [], 0, -1
    for end in sorted({round(place) for place in places.tolist()}):
        points = curve.train[begin:end]
        step = points[-1].step
        heldout = [point.loss for point in curve.heldout if after < point.step <= step]
        rows.append(
            {
                "step": step,
                "tokens_seen": points[-1].tokens_seen,
                "loss": _mean(points).loss,
                "heldout_loss": heldout[-1] if heldout else None,
            }
        )
        begin, after = end, step
    return rows


def draw_curve(curve: Curve, path: Path) -> None:
    """Draw training and held-out loss over the steps, if there are any.

    Raises:
        OSError: If the disk refuses.
    """
    if not curve.train:
        return
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = [point.step for point in curve.train]
    losses = np.array([point.loss for point in curve.train])
    axes.plot(steps, losses, color=_TRAIN_COLOR, linewidth=0.8, alpha=0.35)
    axes.plot(steps, smoothed(losses), color=_TRAIN_COLOR, linewidth=1.6, label="training")
    if curve.heldout:
        held = [(point.step, point.loss) for point in curve.heldout]
        axes.plot(*zip(*held, strict=True), "o-", color=_HELDOUT_COLOR, ms=3, label="held-out")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a token)")
    axes.grid(True, linewidth=0.5, alpha=0.5)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
