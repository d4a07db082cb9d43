"""Does the time of a token grow with the length?"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks.common.report import Table
from benchmarks.model.encoders import PASSES, Encoder, Sizes, make_ids
from benchmarks.model.machine import alternate


@dataclass(frozen=True)
class LengthOptions:
    """What to measure."""

    lengths: tuple[int, ...] = (2048, 4096, 8192, 16384, 32768)
    dtypes: tuple[str, ...] = ("fp32", "bf16")
    layers: int = 2
    tokens: int = 4096
    repeats: int = 3


def length_tables(sizes: Sizes, options: LengthOptions) -> list[Table]:
    """Measure one encoder at all lengths in turn; the first length is the unit."""
    rows = []
    for dtype in options.dtypes:
        encoder = Encoder("spade", sizes, options.layers, "fp32" if dtype == "fp32" else "autocast")
        batches = {length: make_ids(sizes, length, options.tokens) for length in options.lengths}
        for run in PASSES:
            functions = {
                str(length): (lambda encoder=encoder, ids=ids, run=run: encoder.run(run, ids))
                for length, ids in batches.items()
            }
            durations = alternate(functions, options.repeats)
            unit: dict[str, float] = {}
            for length, ids in batches.items():
                taken = durations[str(length)]
                row: dict[str, Any] = {"dtype": dtype, "pass": run, "length": length}
                for clock, suffix in (("cpu", ""), ("wall", " (clock)")):
                    each = statistics.median(getattr(x, clock) for x in taken) / ids.numel()
                    unit.setdefault(clock, each)
                    row[f"us/token{suffix}"] = 1e6 * each
                    row[f"/ first{suffix}"] = each / unit[clock]
                rows.append(row)
    title = f"Time a token of a {options.layers}-layer SPADE encoder, trained state space"
    note = "the kernel is made anew at every pass, as in training: only two lengths are ever kept"
    return [Table("length", title, rows, (note,))]
