"""Denoising pretraining on long documents: held-out loss at equal compute, three networks.

Three encoder-decoders learn span corruption (T5's: 15 % of the tokens, spans of 3 on average) on
windows of long documents, none of which joins two. They have T5's norms, relative biases and
decoder, and equal widths and layers, and differ in how the encoder mixes tokens alone: **SPADE**
windows and, in the bottom layer, a trained S4; **window only** the windows; **T5** full attention,
which makes it T5's architecture exactly. Weights begin as this package draws them, T5's too. Under
a seed all see the same windows, equally corrupted, in the same order, one a step.

Equal compute means equal processor time of forward and backward passes and updates. The learning
rate follows the share of the budget that is spent, warmed up and then on a cosine, and training
ends with the budget: so no estimate of a step's time decides who gets more of it. The peak rate of
each network is the best of the same few, each tried once with a part of the budget under another
seed, on windows that are not among those reported.

What a fair reader must know: networks and budgets are tiny, far from where T5 or SPADE are used; at
a few hundred steps a loss tells of words and their neighbours, and little of what is far away.
Processor time is that of this package's full attention, whose step takes about as long as that of
transformers' T5; on accelerators full attention of this length is relatively cheaper, and narrow
networks make attention relatively dearer. The tokenizer has seen the held-out documents, the
networks have not. Losses at equal tokens are taken while the longer run is still in the middle of
its schedule, which is to its disadvantage.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common.report import Table
from benchmarks.downstream.made_up import write_made_up
from benchmarks.paper.cells import Cell, measure_cells
from benchmarks.paper.options import Options
from benchmarks.paper.pretraining_data import (
    documents_of,
    make_data,
    open_heldout,
)
from benchmarks.paper.pretraining_options import PretrainingOptions
from benchmarks.paper.pretraining_run import (
    NETWORKS,
    SPADE,
    T5,
    WINDOW,
    Run,
    pretrain_and_test,
    pretrain_and_watch,
)
from benchmarks.paper.pretraining_statistics import Estimate, mean_interval, paired_interval
from pretrain.evaluation.samples import Counts, losses

Results = list[tuple[Run, dict[str, Any]]]
"""Runs and what `pretrain_and_test` found."""
PAIRS = ((SPADE, WINDOW), (SPADE, T5), (WINDOW, T5))
_TRIAL_SEED = 1000
"""Of the trials for learning rates; no run that is reported has it."""


def pretraining_tables(options: Options) -> list[Table]:
    """Choose learning rates, pretrain all networks under all seeds, and compare.

    Raises:
        ValueError: No data are given, or they have too few held-out windows.
    """
    chosen = options.pretraining
    shards = make_data(_data_folder(options), options.out, chosen.data)
    heldout = open_heldout(shards, chosen.data)
    documents = documents_of(heldout.stream, chosen.data.windows)
    counts = Counts(*(column[: chosen.data.windows] for column in heldout.counts))
    trials = _try_rates(options, str(shards))
    rates = _best_rates(trials)
    runs = [
        _run(chosen, network, seed, rates[network], str(shards))
        for network in NETWORKS
        for seed in options.seeds
    ]
    cells = [Cell(f"pretraining/{_name(run)}", run) for run in runs]
    found = measure_cells(cells, pretrain_and_test, options.out, options.workers)
    results = list(zip(runs, found, strict=True))
    watched = heldout.counts.targets[chosen.data.windows :].sum()
    curve = [
        {"network": run.network, "seed": run.seed, **_curve_point(point, watched)}
        for run, result in results
        for point in result["curve"]
    ]
    return [
        _losses_table(chosen, results, counts, len(set(documents.tolist()))),
        _differences_table(results, counts, documents),
        _equal_tokens_table(curve, chosen.data.watched_windows),
        Table("pretraining_rates", "Learning rates that were tried", _rate_rows(trials, watched)),
        Table("pretraining_curve", "Held-out loss on the way, other windows", curve),
    ]


def _data_folder(options: Options) -> Path:
    if options.data is not None:
        return options.data
    if not options.pretraining.invented:
        raise ValueError(
            "data is missing, and pretraining learns long documents; give --data the folder that "
            "holds sotu, peps and sumpubmed"
        )
    return write_made_up(options.out / "made-up")


def _run(chosen: PretrainingOptions, network: str, seed: int, rate: float, shards: str) -> Run:
    return Run(network, seed, rate, 60 * chosen.cpu_minutes, shards, chosen.data, chosen.run)


def _name(run: Run) -> str:
    return f"{run.network.replace(' ', '-').lower()}-seed{run.seed}"


def _try_rates(options: Options, shards: str) -> Results:
    """Give each network a short run at each rate."""
    chosen = options.pretraining
    runs = [
        dataclasses.replace(
            _run(chosen, network, _TRIAL_SEED, rate, shards),
            cpu_seconds=60 * chosen.cpu_minutes * chosen.trial_share,
        )
        for network in NETWORKS
        for rate in chosen.learning_rates
    ]
    cells = [Cell(f"pretraining/{_name(run)}-rate{run.learning_rate:g}", run) for run in runs]
    found = measure_cells(cells, pretrain_and_watch, options.out, options.workers)
    return list(zip(runs, found, strict=True))


def _best_rates(trials: Results) -> dict[str, float]:
    """The rate with the lowest watched loss at the end, for each network."""
    rates = {}
    for network in NETWORKS:
        ends = {
            run.learning_rate: found["curve"][-1]["nats"][0]
            for run, found in trials
            if run.network == network
        }
        rates[network] = min(ends, key=lambda rate: ends[rate])
    return rates


def _rate_rows(trials: Results, targets: int) -> list[dict[str, Any]]:
    best = _best_rates(trials)
    return [
        {
            "network": run.network,
            "learning rate": run.learning_rate,
            "steps": found["curve"][-1]["steps"],
            "CPU-seconds": found["curve"][-1]["cpu_seconds"],
            "loss": found["curve"][-1]["nats"][0] / targets,
            "chosen": run.learning_rate == best[run.network],
        }
        for run, found in trials
    ]


def _curve_point(point: dict[str, Any], targets: int) -> dict[str, Any]:
    return {
        "steps": point["steps"],
        "tokens": point["tokens"],
        "CPU-seconds": point["cpu_seconds"],
        "loss": point["nats"][0] / targets,
        "batches": point["batches"],
    }


def _losses_table(
    chosen: PretrainingOptions, results: Results, counts: Counts, documents: int
) -> Table:
    """What each run cost, and its losses on the reported windows."""
    rows = []
    for run, result in results:
        found = losses(counts, np.array(result["nats"]))
        in_pieces = losses(counts, np.array(result["piece_nats"]))
        rows.append(
            {
                "network": run.network,
                "seed": run.seed,
                "parameters": result["parameters"],
                "learning rate": run.learning_rate,
                "steps": result["steps"],
                "million input tokens": result["tokens"] / 1e6,
                "CPU-seconds": result["cpu_seconds"],
                "loss": found["loss"],
                "of text": found["text_loss"],
                "encoder in pieces": in_pieces["loss"],
                "unigram loss": found["unigram_loss"],
                "unigram of text": found["unigram_text_loss"],
            }
        )
    notes = (
        (
            f"nats a target token of {chosen.data.windows} held-out windows of {documents} "
            "documents; of text: without sentinels and ends, whose places are given away"
        ),
        (
            f"encoder in pieces: its sight cut to pieces of {chosen.run.piece_tokens} tokens that "
            "know nothing of each other; what is lost is what it made of far context"
        ),
        (
            "CPU-seconds: of forward and backward passes and updates, on one thread; unigram: what "
            "frequencies alone would give"
        ),
    )
    return Table("pretraining", "Held-out loss at equal compute", rows, notes)


def _differences_table(results: Results, counts: Counts, documents: npt.NDArray[np.int64]) -> Table:
    """Differences within seeds, and over them."""
    nats = {(run.network, run.seed): np.array(result["nats"])[:, 0] for run, result in results}
    seeds = list(dict.fromkeys(run.seed for run, _ in results))
    rows: list[dict[str, Any]] = []
    for first, second in PAIRS:
        values = []
        for seed in seeds:
            pair = (nats[first, seed], nats[second, seed])
            found = paired_interval(*pair, counts.targets, documents)
            rows.append(_difference_row(first, second, str(seed), found))
            values.append(found.value)
        rows.append(_difference_row(first, second, "all", mean_interval(values)))
    note = (
        "negative: the first is better. Intervals are of 95 %: of one seed by drawing the held-out "
        "documents anew, of all seeds by Student's distribution over the seeds"
    )
    return Table("pretraining_differences", "Differences at equal compute, nats", rows, (note,))


def _difference_row(first: str, second: str, seed: str, found: Estimate) -> dict[str, Any]:
    return {
        "networks": f"{first} - {second}",
        "seed": seed,
        "difference": found.value,
        "low": found.low,
        "high": found.high,
    }


def _equal_tokens_table(curve: list[dict[str, Any]], windows: int) -> Table:
    """Losses at the last watched step that all runs have reached."""
    reached = [
        {row["steps"] for row in curve if (row["network"], row["seed"]) == run}
        for run in dict.fromkeys((row["network"], row["seed"]) for row in curve)
    ]
    common = max(set.intersection(*reached), default=None)
    rows = []
    for network in NETWORKS:
        of_one = [x for x in curve if x["network"] == network and x["steps"] == common]
        if not of_one:
            continue
        values = [row["loss"] for row in of_one]
        estimate = mean_interval(values)
        rows.append(
            {
                "network": network,
                "steps": common,
                "tokens": round(sum(row["tokens"] for row in of_one) / len(of_one)),
                "CPU-seconds": sum(row["CPU-seconds"] for row in of_one) / len(of_one),
                "loss": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
            }
        )
    note = (
        f"of {windows} other held-out windows, means over seeds with Student's interval; who takes "
        "more steps within the budget is here earlier in its schedule, at a higher learning rate"
    )
    return Table("pretraining_equal_tokens", "Held-out loss at equal tokens", rows, (note,))
