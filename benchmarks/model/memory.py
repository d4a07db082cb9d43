"""Peak memory of one forward, or one forward and backward pass, each in a process of its own."""

from __future__ import annotations

from typing import Any

from benchmarks.common.report import Table
from benchmarks.model.cell import run_cell
from benchmarks.model.encoders import OURS, Sizes
from benchmarks.model.speed import SpeedOptions, precisions


def memory_tables(sizes: Sizes, options: SpeedOptions, threads: int) -> list[Table]:
    """Measure every cell, one after the other.

    Args:
        sizes: Of all encoders.
        options: Lengths, models and precisions; `repeats` has no meaning here.
        threads: Of each process.
    """
    rows: list[dict[str, Any]] = []
    for dtype in options.dtypes:
        for length in options.lengths:
            for run in options.passes:
                rows += _one_length(sizes, options, threads, dtype, length, run)
    note = (
        "resident memory above that of weights and ids, after a short warm-up; gradients of the "
        "weights are part of fwd+bwd"
    )
    return [
        Table("memory", "Encoder peak memory", rows, (note,)),
        Table("memory_ratios", "Peak memory over LongT5 local", _ratios(rows)),
    ]


def _one_length(
    sizes: Sizes, options: SpeedOptions, threads: int, dtype: str, length: int, run: str
) -> list[dict[str, Any]]:
    rows = []
    for model in options.models_at(length):
        for checkpointing in (False, True):
            if checkpointing and (model not in OURS or run == "forward"):
                continue
            cell = {
                "kind": "encoder",
                "sizes": vars(sizes),
                "threads": threads,
                "model": model,
                "layers": options.layers_at(length),
                "precision": precisions(model, dtype, False)[0],
                "checkpointing": checkpointing,
                "pass": run,
                "length": length,
                "tokens": options.tokens,
            }
            found = run_cell(cell)
            rows.append(
                {
                    "dtype": dtype,
                    "length": length,
                    "layers": options.layers_at(length),
                    "pass": run,
                    "model": f"{model}, checkpointing" if checkpointing else model,
                    "MiB": found["extra_bytes"] / 2**20,
                }
            )
    return rows


def _ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    cells = list(dict.fromkeys((row["dtype"], row["length"], row["pass"]) for row in rows))
    result = []
    for dtype, length, run in cells:
        peaks = {
            row["model"]: row["MiB"]
            for row in rows
            if (row["dtype"], row["length"], row["pass"]) == (dtype, length, run)
        }
        local = peaks.pop("LongT5 local", None)
        if local:
            ratios = {name: value / local for name, value in peaks.items()}
            result.append({"dtype": dtype, "length": length, "pass": run, **ratios})
    return result
