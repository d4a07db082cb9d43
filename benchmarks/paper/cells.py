"""Long measurements in small pieces, each kept when it is done and never made again.

A question is cut into cells, for instance a variant under a seed. Each is measured by a process of
its own with one thread, a few at a time, and is written to ``cells/`` in the folder of the report
before the next begins. Whoever types the same command again goes on with what is missing.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

FOLDER = "cells"

Measure = Callable[[Any], dict[str, Any]]
"""Takes a cell's settings, returns JSON values; a function that a new process can import."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One piece of a question."""

    name: str
    """Of its file, for instance ``recall/window-seed0``; unique within a report."""
    settings: Any
    """A frozen dataclass with all that decides the result."""

    def path(self, out: Path) -> Path:
        """Return its file."""
        return out / FOLDER / f"{self.name}.json"

    def described(self) -> dict[str, Any]:
        """Return the settings as JSON has them."""
        plain: dict[str, Any] = json.loads(
            json.dumps(dataclasses.asdict(self.settings), default=str)
        )
        return plain


def measure_cells(
    cells: Sequence[Cell], measure: Measure, out: Path, workers: int
) -> list[dict[str, Any]]:
    """Measure what is not yet there.

    Args:
        cells: In the order of the answer.
        measure: Measures one.
        out: Folder of the report.
        workers: Processes at a time; 0: this one.

    Returns:
        What `measure` returned for each cell, now or in an earlier run.

    Raises:
        ValueError: A cell was measured with other settings.
        RuntimeError: Some failed; the others are kept.
    """
    missing = [cell for cell in cells if _kept(cell, out) is None]
    if workers == 0:
        for cell in missing:
            _measure_into(measure, cell, cell.path(out))
    else:
        _measure_beside(missing, measure, out, workers)
    found = [_kept(cell, out) for cell in cells]
    failed = [cell.name for cell, result in zip(cells, found, strict=True) if result is None]
    if failed:
        raise RuntimeError(f"not measured: {', '.join(failed)}; type the command again for these")
    return [result for result in found if result is not None]


def _kept(cell: Cell, out: Path) -> dict[str, Any] | None:
    path = cell.path(out)
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    asked, kept = cell.described(), content["settings"]
    for name in sorted(asked.keys() | kept.keys()):
        if asked.get(name) != kept.get(name):
            raise ValueError(
                f"{path} was measured with {name}={kept.get(name)!r}, not {asked.get(name)!r}; "
                "give another --out, or delete it"
            )
    found: dict[str, Any] = content["found"]
    return found


def _measure_beside(missing: Sequence[Cell], measure: Measure, out: Path, workers: int) -> None:
    """Measure in new processes, so that no cell inherits memory, threads or caches of another."""
    context = multiprocessing.get_context("spawn")
    waiting, running = list(missing), dict[int, BaseProcess]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                cell = waiting.pop(0)
                process = context.Process(
                    target=_measure_into, args=(measure, cell, cell.path(out))
                )
                process.start()
                running[process.sentinel] = process
            for sentinel in wait(list(running)):
                assert isinstance(sentinel, int), "sentinels are all that is waited for"
                running.pop(sentinel).join()
    finally:
        for process in running.values():
            process.terminate()
            process.join()


def _measure_into(measure: Measure, cell: Cell, path: Path) -> None:
    """Measure with one thread; the file is there with all of its content or not at all."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started, cpu_started = time.perf_counter(), time.process_time()
    try:
        found = measure(cell.settings)
    finally:
        torch.set_num_threads(threads)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    content = {
        "settings": cell.described(),
        "found": found,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)
    print(f"  {cell.name}: {seconds:.0f} s, {cpu_seconds:.0f} CPU-seconds", flush=True)
