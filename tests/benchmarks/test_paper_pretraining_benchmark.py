"""The paper's scaling and pretraining questions run, and compare what they say they compare."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import T5Config

from benchmarks.paper import pretraining_plot, scaling_plot
from benchmarks.paper.options import SMOKE, Options
from benchmarks.paper.pretraining_options import DataOptions, PretrainingOptions, RunOptions
from benchmarks.paper.pretraining_run import NETWORKS, SPADE, T5, WINDOW, Run, make_config
from benchmarks.paper.pretraining_statistics import mean_interval, paired_interval
from benchmarks.paper.scaling import exponents
from benchmarks.paper.scaling_cell import (
    FULL,
    OUT_OF_MEMORY,
    OUT_OF_TIME,
    TILED,
    Length,
    measure_length,
)
from benchmarks.paper.scaling_options import SMOKE as SMALL_SCALING
from spade_model.published_t5 import t5_config


def answer(question: str, options: Options) -> dict[str, list[dict[str, Any]]]:
    module = importlib.import_module(f"benchmarks.paper.{question}")
    tables = getattr(module, f"{question}_tables")(options)
    return {table.name: table.rows for table in tables}


@pytest.mark.slow
def test_scaling_is_measured_and_drawn(tmp_path: Path) -> None:
    options = dataclasses.replace(SMOKE, out=tmp_path, workers=0)
    tables = answer("scaling", options)
    lengths = options.scaling.lengths_tokens
    models = {row["model"] for row in tables["scaling"]}
    assert len(models) == 5
    assert len(tables["scaling"]) == len(models) * 2 * len(lengths)
    assert all(row["ended"] is None and row["MiB"] >= 0 for row in tables["scaling"])
    assert all(row["to tokens"] == max(lengths) for row in tables["scaling_exponents"])
    scaling_plot.draw(tables, tmp_path)
    assert (tmp_path / "scaling.png").stat().st_size > 0


def length(model: str, **changes: Any) -> Length:
    small = Length(model, SMALL_SCALING.sizes, 1, "forward", 4096, 2**30, 60.0)
    return dataclasses.replace(small, **changes)


@pytest.mark.slow
def test_limits_end_a_length_and_nothing_else() -> None:
    """Scores of 4,096 tokens are 128 MiB; in tiles, and in windows, they are never all there."""
    limited = length(FULL, memory_limit_bytes=2**26)
    assert measure_length(limited).ended == OUT_OF_MEMORY
    for model in (TILED, "spade"):
        cost = measure_length(dataclasses.replace(limited, model=model))
        assert cost.ended is None
        assert cost.extra_bytes is not None
        assert 0 < cost.extra_bytes < 2**26
    long = length(TILED, tokens=2**17, cpu_limit_seconds=1.0)
    assert measure_length(long).ended == OUT_OF_TIME
    with pytest.raises(RuntimeError, match="ended with 1"):
        measure_length(length("no such model"))


def test_exponents_are_slopes_and_leave_out_what_did_not_run() -> None:
    rows = [
        {"model": "m", "pass": "p", "tokens": n, "CPU-seconds": 3e-9 * n**2, "MiB": 0.1 * n}
        | {"ended": None}
        for n in (1024, 2048, 4096, 8192)
    ]
    ended = {"tokens": 16384, "CPU-seconds": None, "MiB": None, "ended": OUT_OF_TIME}
    rows[0]["CPU-seconds"] = 1.0  # shorter than what is fitted
    (found,) = exponents([*rows, {"model": "m", "pass": "p"} | ended], from_tokens=2048)
    assert found["exponent of time"] == pytest.approx(2)
    assert found["exponent of memory"] == pytest.approx(1)
    assert found["to tokens"] == 8192
    (alone,) = exponents(rows, from_tokens=8192)
    assert alone["exponent of time"] is None


@pytest.mark.slow
def test_networks_learn_the_same_batches_with_equal_compute(tmp_path: Path) -> None:
    options = dataclasses.replace(SMOKE, out=tmp_path, workers=0, seeds=(0, 1))
    tables = answer("pretraining", options)
    budget = 60 * options.pretraining.cpu_minutes
    assert [(row["network"], row["seed"]) for row in tables["pretraining"]] == [
        (network, seed) for network in NETWORKS for seed in (0, 1)
    ]
    for row in tables["pretraining"]:
        # The last step begins within the budget; it may end beyond it.
        assert budget <= row["CPU-seconds"] < 2 * budget
        assert row["loss"] > 0
    digests: dict[tuple[int, int], set[int]] = {}
    for row in tables["pretraining_curve"]:
        digests.setdefault((row["seed"], row["steps"]), set()).add(row["batches"])
    assert all(len(same) == 1 for same in digests.values()), "all networks see the same batches"
    assert digests[0, 1] != digests[1, 1], "and other ones under another seed"
    networks = {row["network"] for row in tables["pretraining_equal_tokens"]}
    assert networks == set(NETWORKS)
    assert len({row["tokens"] for row in tables["pretraining_equal_tokens"]}) == 1
    assert sum(row["chosen"] for row in tables["pretraining_rates"]) == len(NETWORKS)

    by_run = {(row["network"], row["seed"]): row["loss"] for row in tables["pretraining"]}
    for row in tables["pretraining_differences"]:
        first, second = row["networks"].split(" - ")
        seeds = (0, 1) if row["seed"] == "all" else (int(row["seed"]),)
        expected = np.mean([by_run[first, seed] - by_run[second, seed] for seed in seeds])
        assert row["difference"] == pytest.approx(float(expected), abs=1e-9)
        assert row["low"] <= row["difference"] <= row["high"]
    pretraining_plot.draw(tables, tmp_path)
    assert (tmp_path / "pretraining.png").stat().st_size > 0

    # What is there is not measured again.
    assert answer("pretraining", options) == tables


def test_real_documents_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data is missing.*give --data"):
        answer("pretraining", Options(out=tmp_path))


def test_t5_is_the_architecture_that_is_imported() -> None:
    run = Run(T5, 0, 1e-3, 1.0, "", DataOptions(), RunOptions())
    ours = make_config(run, vocab_size=4096)
    theirs = T5Config(
        vocab_size=4096,
        d_model=ours.d_model,
        d_kv=ours.head_dim,
        num_heads=ours.num_heads,
        d_ff=ours.d_ff,
        num_layers=ours.num_encoder_layers,
        num_decoder_layers=ours.num_decoder_layers,
        dropout_rate=0.0,
    )
    own = {
        name: getattr(ours, name)
        for name in ("state_dim", "local_radius_tokens", "trained_length_tokens")
    }
    imported = t5_config(theirs.to_dict(), {"state_space": "none", "attention": "full", **own})
    assert ours == imported
    others = [make_config(dataclasses.replace(run, network=x), 4096) for x in (SPADE, WINDOW)]
    for other in others:
        changed = {"attention": "full", "state_space": "none"}
        assert dataclasses.replace(other, **changed) == ours, "they differ in the encoder alone"


def test_intervals_cover_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        values = generator.normal(0.3, 0.1, size=3)
        estimate = mean_interval(values.tolist())
        assert estimate.low is not None
        assert estimate.high is not None
        hits += estimate.low <= 0.3 <= estimate.high
    assert 180 <= hits <= 199
    assert mean_interval([1.0]).low is None


def test_windows_of_a_document_count_together() -> None:
    """Copies of the same windows say nothing new where they are of one document."""
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(2, 20))
    tokens = np.full(20, 10)
    documents = np.arange(20)
    once = paired_interval(first, second, tokens, documents)
    assert once.value == pytest.approx(float((first - second).sum() / 200))
    again = paired_interval(*(np.tile(x, 4) for x in (first, second, tokens, documents)))
    assert again == pytest.approx(once)


def test_smoke_sizes_are_of_the_same_questions() -> None:
    assert SMOKE.pretraining.invented
    assert not PretrainingOptions().invented
    assert SMOKE.pretraining.data.objective.spans <= SMOKE.pretraining.data.sentinels
    assert DataOptions().objective.spans <= DataOptions().sentinels
