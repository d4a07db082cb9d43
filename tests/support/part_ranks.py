"""A rank that shares samples with others: ``python part_ranks.py REQUEST.json``.

The request names a folder of the data set for each rank, as machines have copies of their own. Each
rank reads the same samples once by a loader and once by a stream, and writes what its model would
be given, and what it knows of damage, into ``OUT/RANK.pt``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from data_pipeline.objectives import make_objective
from data_pipeline.reading import shard_reader
from data_pipeline.reading.batch_loader import BatchLoader, Stripes
from data_pipeline.reading.source import StreamSettings
from data_pipeline.reading.stream import PretrainingStream
from pretrain.ranks import Ranks
from pretrain.sample_groups import SampleGroup, make_sample_group

CPU = torch.device("cpu")
MICRO_BATCH_SIZE = 3


def settings_of(request: dict[str, Any], rank: int) -> StreamSettings:
    """The stream of one rank, of whole samples."""
    return StreamSettings(
        sources={"a": Path(request["folders"][rank])},
        objective=make_objective(**request["objective"]),
        seed=3,
        on_damage="quarantine",
        max_damaged_fraction=0.9,
        sentence_end=np.arange(600) % 11 == 1,
        **request["settings"],
    )


def loaded(
    settings: StreamSettings, group: SampleGroup, micro_batches: int
) -> tuple[list[dict[str, Any]], list[Any]]:
    """What the model is given of a loader's micro-batches, and the damage."""
    stripes = Stripes(
        global_batch_size=MICRO_BATCH_SIZE,
        micro_batch_size=MICRO_BATCH_SIZE,
        rank=0,
        world_size=1,
    )
    inputs = []
    with BatchLoader(settings, stripes) as loader:
        for _ in range(micro_batches):
            batch = group.complete(next(loader), loader.make_whole, lambda: loader.quarantined)
            inputs.append(group.inputs(batch, CPU))
    return inputs, [entry[1:3] for entry in loader.quarantined]


def streamed(
    settings: StreamSettings, group: SampleGroup, micro_batches: int
) -> tuple[list[dict[str, Any]], list[Any]]:
    """The same by a stream."""
    stream = PretrainingStream(settings)
    inputs = []
    for first in range(0, micro_batches * MICRO_BATCH_SIZE, MICRO_BATCH_SIZE):
        indices = np.arange(first, first + MICRO_BATCH_SIZE)
        inputs.append(group.inputs(group.read(stream, indices), CPU))
    stream.close()
    return inputs, [entry[1:3] for entry in stream.quarantine.entries]


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    shard_reader._RETRY_SECONDS = (0.0, 0.0)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    group = make_sample_group(Ranks(rank, world_size, rank, "test"), world_size)
    found = []
    for case in request["cases"]:
        settings = dataclasses.replace(settings_of(case, rank), part=group.part)
        found.append([read(settings, group, case["micro_batches"]) for read in (loaded, streamed)])
        for inputs, _ in found[-1]:
            for one in inputs:
                one["part"] = one["part"].lengths_tokens
    torch.save(found, Path(request["out"]) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
