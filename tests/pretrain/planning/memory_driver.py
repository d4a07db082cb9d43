"""Trains a few steps in several layouts and prints what they needed: one process is one rank.

Started by the tests with MALLOC_PERTURB_, so that what is allocated is resident, as on a GPU.
"""

from __future__ import annotations

import collections
import ctypes
import gc
import json
import sys
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from pretrain.config import RunConfig
from pretrain.engine.start import start_processes
from pretrain.engine.training_engine import TrainingEngine
from spade_model import SpadeForSeq2Seq
from spade_model.activation_checkpointing import ActivationCheckpointing

COLLECTIVES = ("all_reduce", "reduce_scatter_tensor", "all_gather_into_tensor")
counted: collections.Counter[str] = collections.Counter()


def count_collectives() -> None:
    """Count the elements that go through DeepSpeed's collectives."""
    import deepspeed.comm

    backend = deepspeed.comm.comm.cdb
    for name in COLLECTIVES:
        original = getattr(backend, name)

        def counting(*args: Any, _name: str = name, _call: Any = original, **kwargs: Any) -> Any:
            tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
            counted[_name] += max((x.numel() for x in tensors), default=0)
            return _call(*args, **kwargs)

        setattr(backend, name, counting)


def resident_bytes() -> int:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def train(config: RunConfig, model: nn.Module, world_size: int, steps: int) -> int:
    """Peak memory of the last step."""
    engine = TrainingEngine(model, config, world_size, torch.device("cpu"))
    del model
    objective = config.data.make_objective()
    rows, micro_batches = config.train.micro_batch_size, config.accumulation_steps(world_size)
    peak = 0
    for _ in range(steps):
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        counted.clear()
        for number in range(micro_batches):
            inputs = {
                "input_ids": torch.randint(0, 300, (rows, objective.input_length_tokens)),
                "labels": torch.randint(0, 300, (rows, objective.target_length_tokens)),
            }
            engine.backward(engine.forward(inputs, last=number == micro_batches - 1).loss)
        assert engine.update(1.0).applied
        peak = peak_bytes()
    engine.deepspeed.destroy()
    return peak


def main() -> None:
    settings, layouts = (json.loads(text) for text in sys.argv[1:3])
    start_processes(torch.device("cpu"))
    count_collectives()
    world_size = torch.distributed.get_world_size()
    for number, layout in enumerate([layouts[0], *layouts]):  # the first fills caches of libraries
        config = RunConfig.from_dict(settings | layout)
        before = resident_bytes()
        torch.manual_seed(0)
        model = SpadeForSeq2Seq(config.model)
        chosen = ActivationCheckpointing(config.train.activation_checkpointing)
        model.set_activation_checkpointing(chosen)
        peak = train(config, model, world_size, steps=2 if number else 1)
        del model
        if number and torch.distributed.get_rank() == 0:
            print(json.dumps({"peak_bytes": peak - before, "elements": counted}), flush=True)
    torch.distributed.barrier()


if __name__ == "__main__":
    main()
