"""One of two ranks that train a small network under DeepSpeed with a timer, and say what it saw.

``python telemetry_rank.py FOLDER STEPS ZERO_STAGE``; rank 1 is slow in its forward pass. Writes
``FOLDER/STAGE-RANK.json``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pretrain.ranks import Ranks
from pretrain.telemetry.communication import CommunicationMeter
from pretrain.telemetry.rank_facts import OWN_SECONDS, gather_rank_facts, memory_facts
from pretrain.telemetry.step_timer import StepTimer

SLOWNESS_SECONDS = 0.03
WIDTH = 64


def main(folder: Path, steps: int, zero_stage: int) -> None:
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    meeting = (folder / f"meeting-{zero_stage}").as_uri()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", verbose=False)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, WIDTH))
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
        config={
            "train_batch_size": world_size,
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {"stage": zero_stage},
            "steps_per_print": 2**31 - 1,
        },
    )
    timer = StepTimer(torch.device("cpu"))
    before = dict(vars(deepspeed.comm.comm.cdb))
    meter = CommunicationMeter(timer, deepspeed.comm.comm.cdb).install()
    losses = train(engine, timer, steps, rank)
    record: dict[str, Any] = {**timer.take(), **meter.take(steps), "losses": losses}
    meter.remove()
    record["untouched"] = vars(deepspeed.comm.comm.cdb) == before
    facts = {OWN_SECONDS: timer.own_seconds, **memory_facts(torch.device("cpu"))}
    record["ranks"] = gather_rank_facts(facts, Ranks(rank, world_size, rank, "test"), None)
    (folder / f"{zero_stage}-{rank}.json").write_text(json.dumps(record), encoding="utf-8")
    dist.destroy_process_group()


def train(engine: Any, timer: StepTimer, steps: int, rank: int) -> list[float]:
    losses = []
    for _ in range(steps):
        with timer.part("data"):
            batch = torch.ones(1, WIDTH)
        with timer.part("forward"):
            loss = engine(batch).square().mean()
            time.sleep(rank * SLOWNESS_SECONDS)
        with timer.part("backward"):
            engine.backward(loss)
        with timer.part("optimizer"):
            engine.step()
        losses.append(loss.item())
        timer.step_done()
    return losses


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
