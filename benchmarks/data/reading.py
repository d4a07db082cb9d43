"""Tokens a second of loaders over the same samples, with and without worker processes."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common.report import Table
from benchmarks.data.cell import run_cell
from benchmarks.data.corpus import prepare_corpus, token_set, warm_page_cache
from benchmarks.data.options import Options

_WARM_UP_BATCHES = 24
_FLAT = "flat memmap"
_OURS = "ours"


def reading_tables(options: Options) -> list[Table]:
    """Measure every set with every loader, in turn."""
    root = prepare_corpus(options)
    return [_one_set(name, root, options) for name in options.sets]


def _one_set(name: str, root: Path, options: Options) -> Table:
    data = token_set(name, root)
    found: dict[str, list[dict[str, Any]]] = {loader: [] for loader in options.loaders}
    skipped: dict[str, str] = {}
    for _ in range(options.rounds):
        for loader in options.loaders:
            if loader in skipped:
                continue
            cell = {
                "kind": "reading",
                "loader": loader,
                "set": name,
                "root": str(root),
                "workers": options.workers,
                "seconds": options.seconds,
            }
            result = run_cell(cell)
            if "skipped" in result:
                skipped[loader] = result["skipped"]
            else:
                found[loader].append(result)
    rows = [_row(loader, found, options) for loader in options.loaders if found[loader]]
    lengths = "" if data.window_tokens else f", median {_median_length(root)} tokens"
    how = (
        "million tokens a second and CPU nanoseconds a token over all processes: medians; page "
        "cache warm; checksums on for ours, which cuts windows out of the same documents while "
        "reading"
    )
    notes = [
        how,
        *(f"{loader} skipped: {reason}" for loader, reason in skipped.items()),
        *_claims(found, options),
    ]
    title = f"Reading {name}, batches of {data.batch}, {len(data.ends):,} samples{lengths}"
    return Table(f"reading {name}", title, rows, tuple(notes))


def _median_length(root: Path) -> int:
    import numpy as np

    return int(np.median(np.diff(token_set("documents", root).ends, prepend=0)))


def _median(results: list[dict[str, Any]], workers: int, quantity: str) -> float:
    return statistics.median(result[str(workers)][quantity] for result in results)


def _row(loader: str, found: dict[str, list[dict[str, Any]]], options: Options) -> dict[str, Any]:
    row: dict[str, Any] = {"loader": loader}
    for workers in options.workers:
        rate = _median(found[loader], workers, "rate") / 1e6
        row[f"{workers} workers"] = rate
        row[f"ns ({workers})"] = _median(found[loader], workers, "cpu_ns")
        if found.get(_FLAT):
            row[f"/ flat ({workers})"] = rate / (_median(found[_FLAT], workers, "rate") / 1e6)
    return row


def _claims(found: dict[str, list[dict[str, Any]]], options: Options) -> list[str]:
    """Ours over the best of the others, as one sentence for each number of workers."""
    if not found.get(_OURS):
        return []
    sentences = []
    for workers in options.workers:
        rates = {
            loader: _median(results, workers, "rate")
            for loader, results in found.items()
            if results
        }
        ours = {loader: rates.pop(loader) for loader in list(rates) if loader.startswith(_OURS)}
        if rates:
            best = max(rates, key=rates.__getitem__)
            sentences += [
                f"{workers} workers: {name}, {rate / rates[best]:.2f} times the best other, {best}"
                for name, rate in ours.items()
            ]
    return sentences


def measure_cell(cell: dict[str, Any]) -> dict[str, Any]:
    """Measure one loader with each number of workers."""
    import torch

    from benchmarks.data.loaders import make_loader

    torch.set_num_threads(1)
    data = token_set(cell["set"], Path(cell["root"]))
    loader = make_loader(cell["loader"])
    if reason := loader.suits(data):
        return {"skipped": reason}
    loader.prepare(data)
    warm_page_cache(data.root)
    return {
        str(workers): _rate(loader, data, workers, cell["seconds"]) for workers in cell["workers"]
    }


def _rate(loader: Any, data: Any, workers: int, seconds: float) -> dict[str, float]:
    """Steady state: the start of each epoch is left out, then time runs to its end or enough.

    Where epochs go over into one another, as much time as is measured is left out at the start.
    """
    tokens, wall, cpu = 0, 0.0, 0.0
    run = loader.open(data, workers)
    try:
        while wall < seconds:
            batches = run.batches()
            for _ in range(min(_WARM_UP_BATCHES, len(data.ends) // data.batch // 4)):
                next(batches)
            started = time.perf_counter()
            while run.endless and time.perf_counter() - started < seconds:
                next(batches)
            cpu_started, started = _cpu_seconds(), time.perf_counter()
            for batch in batches:
                tokens += run.tokens(batch)
                if time.perf_counter() - started > seconds:
                    break
            wall += time.perf_counter() - started
            cpu += _cpu_seconds() - cpu_started
            del batches
    finally:
        run.close()
    return {"rate": tokens / wall, "cpu_ns": 1e9 * cpu / tokens}


def _cpu_seconds() -> float:
    """CPU time of this process and all its children, living or gone."""
    process = psutil.Process()
    own = process.cpu_times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in process.children(recursive=True):
        try:
            taken = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += taken.user + taken.system
    return float(total)
