"""What the state-space branch costs in a whole encoder, by leaving it out."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from benchmarks.common.report import Table
from benchmarks.model.encoders import PASSES, Encoder, Sizes, make_ids
from benchmarks.model.machine import Duration, alternate
from spade_model.layers import GlobalLocalMixing


@dataclass(frozen=True)
class ShareOptions:
    """What to measure."""

    length: int = 4096
    tokens: int = 4096
    layers: int = 6
    dtypes: tuple[str, ...] = ("fp32", "bf16")
    repeats: int = 5


class _PassThrough(nn.Module):
    """Stands in for the state space: norms and aggregate projection stay."""

    def forward(self, hidden: Tensor, *_: object) -> Tensor:
        """Return the input."""
        return hidden


def _without_state_space(sizes: Sizes, layers: int, precision: str) -> Encoder:
    encoder = Encoder("spade", sizes, layers, precision)
    for module in encoder.module.modules():
        if isinstance(module, GlobalLocalMixing):
            module.state_space = _PassThrough()
    return encoder


def share_tables(sizes: Sizes, options: ShareOptions) -> list[Table]:
    """Run encoders with the whole branch, without the state space, and without the branch."""
    rows = []
    ids = make_ids(sizes, options.length, options.tokens)
    for dtype in options.dtypes:
        precision = "fp32" if dtype == "fp32" else "autocast"
        encoders = {
            "trained": Encoder("spade", sizes, options.layers, precision),
            "frozen": Encoder("spade frozen", sizes, options.layers, precision),
            "joined": _without_state_space(sizes, options.layers, precision),
            "none": Encoder("spade none", sizes, options.layers, precision),
        }
        for run in PASSES:
            functions = {
                name: (lambda encoder=encoder, run=run: encoder.run(run, ids))
                for name, encoder in encoders.items()
            }
            durations = alternate(functions, options.repeats)
            rows += _rows(durations, dtype, run)
    title = (
        f"Share of the state space in a {options.layers}-layer encoder, {options.length:,} tokens"
    )
    note = (
        "medians over rounds of the differences within a round: state space: with it or with its "
        "input in its place; join: its norms and the aggregate projection, against a model of "
        "local attention alone"
    )
    return [Table("share", title, rows, (note,))]


def _rows(durations: dict[str, list[Duration]], dtype: str, run: str) -> list[dict[str, Any]]:
    rows = []
    for model in ("trained", "frozen"):
        row: dict[str, Any] = {"dtype": dtype, "pass": run, "parameters": model}
        for clock, suffix in (("cpu", ""), ("wall", " (clock)")):
            whole, joined, none = (
                [getattr(x, clock) for x in durations[name]] for name in (model, "joined", "none")
            )
            row[f"step ms{suffix}"] = 1e3 * statistics.median(whole)
            row[f"state space %{suffix}"] = _percent(whole, joined, whole)
            row[f"join %{suffix}"] = _percent(joined, none, whole)
        rows.append(row)
    return rows


def _percent(more: list[float], less: list[float], whole: list[float]) -> float:
    pairs = zip(more, less, whole, strict=True)
    return 100 * statistics.median((a - b) / c for a, b, c in pairs)
