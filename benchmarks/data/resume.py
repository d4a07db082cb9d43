"""Going on at half an epoch: seconds to the first batch, and whether the next ones are the same."""

from __future__ import annotations

import pickle
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.common.report import Table
from benchmarks.data.cell import run_cell
from benchmarks.data.corpus import prepare_corpus, token_set, warm_page_cache
from benchmarks.data.options import Options

_SET = "windows of 2,048"


def resume_tables(options: Options) -> list[Table]:
    """Measure every loader that can resume."""
    root = prepare_corpus(options)
    rows, notes = [], []
    first = options.resumed_workers[0]
    for loader in options.resumers:
        cell = {
            "kind": "resume",
            "loader": loader,
            "root": str(root),
            "workers": options.resumed_workers,
            "batches": options.compared_batches,
            "rounds": options.rounds,
        }
        found = run_cell(cell)
        if "skipped" in found:
            notes.append(f"{loader} skipped: {found['skipped']}")
            continue
        row: dict[str, Any] = {
            "loader": loader,
            "first batch s": found[str(first)].get("seconds"),
            "without workers s": found.get("0", {}).get("seconds"),
            "state bytes": found["state_bytes"],
        }
        for workers in options.resumed_workers:
            row[f"{first} -> {workers}"] = found[str(workers)]["outcome"]
        rows.append(row)
    data = token_set(_SET, root)
    how = (
        f"{_SET}, batches of {data.batch}, {len(data.ends):,} samples; stopped at half an epoch "
        f"with {first} workers; outcome: how many of the next {options.compared_batches} batches "
        "are those of the unbroken run, in their order; seconds by the clock from opening the "
        "loader anew in the same process, libraries loaded, medians over rounds; bytes of the "
        "state as pickle writes it"
    )
    return [Table("resume", "Resuming at half an epoch", rows, (how, *notes))]


def measure_cell(cell: dict[str, Any]) -> dict[str, Any]:
    """Stop one loader at half an epoch, and go on with each number of workers."""
    import torch

    from benchmarks.data.loaders import make_loader

    torch.set_num_threads(1)
    data = token_set(_SET, Path(cell["root"]))
    loader = make_loader(cell["loader"])
    loader.prepare(data)
    warm_page_cache(data.root)
    half = len(data.ends) // data.batch // 2
    unbroken = loader.open(data, cell["workers"][0])
    batches = unbroken.batches()
    for _ in range(half):
        next(batches)
    state = unbroken.state(half)
    found: dict[str, Any] = {"state_bytes": len(pickle.dumps(state))}
    expected = [_fingerprint(next(batches)) for _ in range(cell["batches"])]
    del batches
    unbroken.close()
    for workers in cell["workers"]:
        found[str(workers)] = _resumed(loader, data, workers, state, expected, cell["rounds"])
    return found


def _resumed(
    loader: Any, data: Any, workers: int, state: Any, expected: list[int], rounds: int
) -> dict[str, Any]:
    """Seconds to the first batch, and how many batches are the expected ones."""
    seconds, same = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        try:
            run = loader.open(data, workers, state)
            batches = run.batches()
            first = _fingerprint(next(batches))
            seconds.append(time.perf_counter() - started)
            found = [first, *(_fingerprint(next(batches)) for _ in expected[1:])]
            del batches
            run.close()
        except Exception as error:
            # Whatever a peer refuses with is its outcome.
            return {"outcome": type(error).__name__}
        same.append(sum(one == other for one, other in zip(found, expected, strict=True)))
    return {"outcome": f"{min(same)}/{len(expected)}", "seconds": statistics.median(seconds)}


def _fingerprint(batch: Any) -> int:
    import xxhash

    from benchmarks.data.loaders.interface import content

    return xxhash.xxh3_64_intdigest(content(batch).numpy().tobytes())
