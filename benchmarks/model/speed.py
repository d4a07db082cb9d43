"""Tokens a second of the encoder, side by side with its peers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.common.report import Table
from benchmarks.model.encoders import (
    MODELS,
    OURS,
    PASSES,
    Encoder,
    Sizes,
    make_ids,
    useful_flops_per_token,
)
from benchmarks.model.machine import Duration, GemmPeak, alternate, median


@dataclass(frozen=True)
class SpeedOptions:
    """What to measure."""

    lengths: tuple[int, ...] = (1024, 4096, 8192, 16384)
    dtypes: tuple[str, ...] = ("fp32", "bf16")
    models: tuple[str, ...] = MODELS
    tokens: int = 4096
    """Tokens of a step; a longer text is a step by itself."""
    layers: int = 6
    long_layers: int = 2
    """Layers of texts longer than `layers_until`."""
    layers_until: int = 4096
    longest_full: int = 8192
    """Longest text for full attention, whose memory is quadratic."""
    repeats: int = 3
    passes: tuple[str, ...] = PASSES
    both_precisions: bool = False
    """Also run ours in pure bfloat16 and the peers under autocast."""

    def layers_at(self, length: int) -> int:
        """Layers of the encoders at a length."""
        return self.layers if length <= self.layers_until else self.long_layers

    def models_at(self, length: int) -> list[str]:
        """Models that can run a length."""
        return [m for m in self.models if m != "T5 sdpa" or length <= self.longest_full]


def precisions(model: str, dtype: str, both: bool) -> list[str]:
    """Return in which precisions a model runs, the main one first.

    In bfloat16 ours is run as it is trained, by autocast over float32 weights; the peers as a
    whole in bfloat16, which is faster for them.
    """
    if dtype == "fp32":
        return ["fp32"]
    order = ["autocast", "bf16"] if model in OURS else ["bf16", "autocast"]
    return order if both else order[:1]


def label(model: str, dtype: str, precision: str) -> str:
    """Name a model; the main precision goes without saying."""
    return model if precision == precisions(model, dtype, True)[0] else f"{model} ({precision})"


def speed_tables(sizes: Sizes, options: SpeedOptions) -> list[Table]:
    """Measure every cell."""
    rows, ratios = [], []
    for dtype in options.dtypes:
        for length in options.lengths:
            measured = _one_length(sizes, options, dtype, length)
            rows += measured
            ratios += _ratios(measured, dtype, length)
    meaning = (
        "rates by CPU time over the number of threads, and by the clock; GEMM: useful FLOPs a "
        "second (projections, feed-forward, aggregate, exact window; three times that with the "
        "backward pass) over the rate of the feed-forward products alone, measured between rounds"
    )
    precision = "bf16: ours under autocast over float32 weights, peers with all weights in bf16"
    title = f"Encoder speed, {options.repeats} rounds, medians"
    return [
        Table("speed", title, rows, (meaning, precision)),
        Table("speed_ratios", "SPADE (trained) over its peers, tokens/s", ratios),
    ]


def _one_length(
    sizes: Sizes, options: SpeedOptions, dtype: str, length: int
) -> list[dict[str, Any]]:
    layers, ids = options.layers_at(length), make_ids(sizes, length, options.tokens)
    encoders = {
        label(model, dtype, precision): (model, Encoder(model, sizes, layers, precision))
        for model in options.models_at(length)
        for precision in precisions(model, dtype, options.both_precisions)
    }
    kind = torch.float32 if dtype == "fp32" else torch.bfloat16
    peak = GemmPeak(sizes.d_model, sizes.d_ff, options.tokens, kind)
    rows = []
    for run in options.passes:
        functions = {
            name: (lambda encoder=encoder, run=run: encoder.run(run, ids))
            for name, (_, encoder) in encoders.items()
        }
        durations = alternate(functions, options.repeats, peak.measure)
        for name, (model, _) in encoders.items():
            useful = useful_flops_per_token(model, sizes, layers, length)
            flops = useful * ids.numel() * (1 if run == "forward" else 3)
            rows.append(
                {
                    "dtype": dtype,
                    "length": length,
                    "rows": ids.shape[0],
                    "layers": layers,
                    "pass": run,
                    "model": name,
                    **_rates(median(durations[name]), ids.numel(), flops, peak),
                }
            )
    return rows


def _rates(taken: Duration, tokens: int, flops: int, peak: GemmPeak) -> dict[str, float]:
    possible = peak.flops_per_second()
    return {
        "tokens/s": tokens / taken.cpu,
        "tokens/s (clock)": tokens / taken.wall,
        "GEMM %": 100 * flops / taken.cpu / possible.cpu,
        "GEMM % (clock)": 100 * flops / taken.wall / possible.wall,
        "GEMM GFLOP/s": possible.cpu / 1e9,
    }


def _ratios(rows: list[dict[str, Any]], dtype: str, length: int) -> list[dict[str, Any]]:
    """Ours, trained, over each other model, by both clocks."""
    result = []
    for run in dict.fromkeys(row["pass"] for row in rows):
        rates = {row["model"]: row for row in rows if row["pass"] == run}
        if "spade" not in rates:
            continue
        ours = rates.pop("spade")
        for by, column in (("CPU", "tokens/s"), ("clock", "tokens/s (clock)")):
            row: dict[str, Any] = {"dtype": dtype, "length": length, "pass": run, "by": by}
            row |= {f"/ {name}": ours[column] / theirs[column] for name, theirs in rates.items()}
            result.append(row)
    return result
