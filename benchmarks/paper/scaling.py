"""Time and memory from 1,024 to 65,536 tokens, beside full attention.

Encoders of equal sizes, float32, one row of random ids, one thread: SPADE with a trained S4 in its
first layer; the same network with windows alone; with full attention instead of windows, its scores
written out (which is what the configuration means by default) and in tiles that are never kept; and
T5's encoder of transformers (`sdpa`), written by others. Each length is measured in a process of
its own with a limit of memory and of processor time, and a model's lengths end where a limit is
met.

What a fair reader must know: the network is narrow, so that attention and the long convolution
weigh more than in a wide one; nobody trains anything; attention in tiles saves memory, not work,
and in this package it also works on keys that are not there, about as many again; kernels for
accelerators (FlashAttention) would be other constants, with the same exponent in time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.common.report import Table
from benchmarks.model.encoders import PASSES
from benchmarks.paper.cells import Cell, measure_cells
from benchmarks.paper.options import Options
from benchmarks.paper.scaling_cell import FULL, TILED, Length, measure_length
from benchmarks.paper.scaling_options import ScalingOptions

MODELS = {
    "spade": "SPADE",
    "spade none": "window only",
    FULL: "full attention",
    TILED: "full attention in tiles",
    "T5 sdpa": "T5 of transformers, sdpa",
}
"""What tables call the models of `scaling_cell`."""


@dataclass(frozen=True)
class _Lengths:
    """A model and a pass at growing lengths."""

    model: str
    run: str
    options: ScalingOptions


def scaling_tables(options: Options) -> list[Table]:
    """Measure each model at growing lengths until a limit ends it; fit exponents."""
    chosen = options.scaling
    cells = [
        Cell(f"scaling/{model}-{run}".replace(" ", "-"), _Lengths(model, run, chosen))
        for model in MODELS
        for run in PASSES
    ]
    found = measure_cells(cells, measure_lengths, options.out, options.workers)
    rows = [row for answer in found for row in answer["rows"]]
    notes = (
        (
            f"{chosen.layers} layers, d_model {chosen.sizes.d_model}, radius "
            f"{chosen.sizes.radius}, float32, one row, one thread; kernels of state spaces are "
            "made anew at every pass"
        ),
        (
            "MiB: peak of resident memory above weights, ids and libraries, in the process's first "
            "long pass; with gradients of the weights where there is a backward pass"
        ),
        (
            f"limits of a process: {chosen.memory_limit_gib:g} GiB, {chosen.cpu_limit_seconds:g} "
            "CPU-seconds; lengths behind the first that met one are not tried"
        ),
    )
    exponent_note = (
        "e of time or memory ~ length^e: slope of a line through the logarithms, from "
        f"{chosen.fit_from_tokens:,} tokens to the longest length that ran"
    )
    return [
        Table("scaling", "Time and memory of an encoder against the length", rows, notes),
        Table(
            "scaling_exponents",
            "How they grow with the length",
            exponents(rows, chosen.fit_from_tokens),
            (exponent_note,),
        ),
    ]


def measure_lengths(lengths: _Lengths) -> dict[str, Any]:
    """Measure one model from the shortest length on; return its rows of the table."""
    options, rows = lengths.options, []
    for tokens in sorted(options.lengths_tokens):
        cost = measure_length(
            Length(
                lengths.model,
                options.sizes,
                options.layers,
                lengths.run,
                tokens,
                memory_limit_bytes=round(options.memory_limit_gib * 2**30),
                cpu_limit_seconds=options.cpu_limit_seconds,
            )
        )
        seconds, extra_bytes = cost.cpu_seconds, cost.extra_bytes
        rows.append(
            {
                "model": MODELS[lengths.model],
                "pass": lengths.run,
                "tokens": tokens,
                "us/token": None if seconds is None else 1e6 * seconds / tokens,
                "CPU-seconds": seconds,
                "MiB": None if extra_bytes is None else extra_bytes / 2**20,
                "ended": cost.ended,
            }
        )
        if cost.ended is not None:
            break
    return {"rows": rows}


def exponents(rows: list[dict[str, Any]], from_tokens: int) -> list[dict[str, Any]]:
    """Fit powers of the length to time and memory; None where fewer than two lengths ran."""
    result = []
    for model, run in dict.fromkeys((row["model"], row["pass"]) for row in rows):
        ran = [
            row
            for row in rows
            if (row["model"], row["pass"]) == (model, run)
            and row["ended"] is None
            and row["tokens"] >= from_tokens
        ]
        tokens = [row["tokens"] for row in ran]
        result.append(
            {
                "model": model,
                "pass": run,
                "to tokens": max(tokens, default=None),
                "exponent of time": _slope(tokens, [row["CPU-seconds"] for row in ran]),
                "exponent of memory": _slope(tokens, [row["MiB"] for row in ran]),
            }
        )
    return result


def _slope(tokens: list[int], values: list[float]) -> float | None:
    if len(tokens) < 2 or min(values) <= 0:
        return None
    x, y = ([math.log(value) for value in each] for each in (tokens, values))
    return float(np.polyfit(x, y, 1)[0])
