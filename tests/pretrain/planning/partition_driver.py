"""Starts DeepSpeed as one of a thousand ranks that are not there; prints its partitions' sizes."""

from __future__ import annotations

import json
import logging
import sys

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from pretrain.config import RunConfig
from pretrain.engine.start import start_processes
from pretrain.engine.training_engine import TrainingEngine
from spade_model import SpadeForSeq2Seq


def elements(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def main() -> None:
    settings, stages, rank, world_size = (json.loads(text) for text in sys.argv[1:5])
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    start_processes(torch.device("cpu"))
    for stage in stages:
        config = RunConfig.from_dict(settings | {"deepspeed": {"zero_stage": stage}})
        model = SpadeForSeq2Seq(config.model)
        engine = TrainingEngine(model, config, world_size, torch.device("cpu"))
        optimizer = engine.deepspeed.optimizer
        if stage == 3:
            found = {
                "master": elements(optimizer.fp32_partitioned_groups_flat),
                "weights": optimizer.lp_param_buffer.numel(),
                "gradients": optimizer.grad_partitions_flat_buffer.numel(),
            }
        else:
            found = {
                "master": elements(optimizer.single_partition_of_fp32_groups),
                "weights": elements(optimizer.bit16_groups_flat),
            }
        print(json.dumps({"groups": len(optimizer.param_groups), **found}), flush=True)
        engine.deepspeed.destroy()


if __name__ == "__main__":
    main()
