"""Changing the number of ranks and workers in the middle of a run, with real processes."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streams import random_documents, stream_settings, write_dataset

from data_pipeline.objectives import make_objective
from data_pipeline.objectives.batch import Batch
from data_pipeline.reading.batch_loader import BatchLoader, Stripes
from data_pipeline.reading.mixture import Stage
from data_pipeline.reading.source import StreamSettings
from data_pipeline.reading.stream import PretrainingStream

GLOBAL_BATCH_SIZE = 24
STAGES = (Stage(0, {"a": 2, "b": 1}), Stage(333, {"a": 1, "b": 1, "c": 3}))
# A process for each rank: it reads its micro-batches of some steps, writes the rows down, and is
# killed. All of them fork from one that has loaded torch, two at a time.
RANKS = """
import json, os, signal, sys, torch
sys.path.insert(0, sys.argv[2])
from test_elastic import read_steps

running = 0
for ask in json.load(open(sys.argv[1])):
    if running == 2:
        assert os.wait()[1] == signal.SIGKILL
        running -= 1
    if os.fork() == 0:
        try:
            read_steps(ask)
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    running += 1
for _ in range(running):
    assert os.wait()[1] == signal.SIGKILL
"""


def settings(folders: list[Path]) -> StreamSettings:
    return stream_settings(
        *folders,
        objective=make_objective("span_corruption", input_length_tokens=64),
        windows="document",
        bucket_samples=8,
        seed=11,
        stages=STAGES,
    )


def rows_of(batch: Batch) -> list[list[list[int]]]:
    """Inputs and labels of each sample, without padding."""
    rows = []
    for row in range(len(batch.labels)):
        length = None if batch.input_lengths is None else batch.input_lengths[row]
        target = None if batch.label_lengths is None else batch.label_lengths[row]
        rows.append([batch.input_ids[row, :length].tolist(), batch.labels[row, :target].tolist()])
    return rows


def read_steps(ask: dict[str, Any]) -> None:
    """What one rank does, from the start it is told on."""
    stripes = Stripes(
        global_batch_size=GLOBAL_BATCH_SIZE,
        micro_batch_size=ask["micro"],
        rank=ask["rank"],
        world_size=ask["ranks"],
        start_sample=ask["start"],
    )
    folders = [Path(folder) for folder in ask["folders"]]
    loader = BatchLoader(settings(folders), stripes, workers=ask["workers"])
    micro_batches = ask["steps"] * stripes.micro_batches_per_step
    rows = [rows_of(next(loader)) for _ in range(micro_batches)]
    Path(ask["out"]).write_text(json.dumps(rows))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    rng = np.random.default_rng(4)
    paths = [tmp_path_factory.mktemp("elastic") / name for name in "abc"]
    for path in paths:
        write_dataset(path, [random_documents(rng, 50) for _ in range(2)])
    return paths


@pytest.mark.slow
def test_ranks_and_workers_change_at_random_and_no_sample_moves(
    folders: list[Path], tmp_path: Path
) -> None:
    """All of 1, 2, 3, 4, 8 ranks with 0, 1, 2, 3 workers, each killed after a few steps.

    The samples of every step, in their order, are those of an uninterrupted reader: none repeated,
    none lost, over several epochs and a change of the mixture.
    """
    choose = random.Random(0)
    shapes = [(ranks, workers) for ranks in (1, 2, 3, 4, 8) for workers in (0, 1, 2, 3)]
    choose.shuffle(shapes)
    asks, start = [], 0
    for number, (ranks, workers) in enumerate(shapes):
        steps = choose.randrange(1, 4)
        micro = GLOBAL_BATCH_SIZE // ranks // choose.choice([1, 3])
        for rank in range(ranks):
            asks.append(
                {
                    "micro": micro,
                    "rank": rank,
                    "ranks": ranks,
                    "workers": workers,
                    "start": start,
                    "steps": steps,
                    "folders": [str(folder) for folder in folders],
                    "out": str(tmp_path / f"{number}-{rank}.json"),
                }
            )
        start += steps * GLOBAL_BATCH_SIZE

    plan = tmp_path / "asks.json"
    plan.write_text(json.dumps(asks))
    support = Path(__file__).resolve().parent.parent / "support"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RANKS, str(plan), str(Path(__file__).parent)],
        env={"PYTHONPATH": str(support), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr

    seen: list[object] = []
    for number, (ranks, _) in enumerate(shapes):
        parts = [json.loads((tmp_path / f"{number}-{r}.json").read_text()) for r in range(ranks)]
        for micro_batch in range(len(parts[0])):
            for part in parts:
                seen += part[micro_batch]
    stream = PretrainingStream(settings(folders))
    assert start > STAGES[1].from_sample
    assert start > 2 * min(stream.samples_per_epoch.values())
    assert len(seen) == start
    for sample, row in enumerate(seen):
        assert [row] == rows_of(stream.batch([sample])), sample
