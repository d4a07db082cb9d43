"""Steps of a run on the ranks of one input: ``python context_plan_ranks.py FOLDER CONFIG…``.

Imports once and forks the ranks of `parallel.context` of each configuration. Each makes the
micro-batches of one step as the run would, and writes the bytes that it has sent.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from pretrain.config import RunConfig
from spade_model.activation_checkpointing import ActivationCheckpointing
from spade_model.context_parallel.group import ContextGroup
from spade_model.context_parallel.part import ContextPart
from spade_model.context_parallel.traffic import Traffic
from spade_model.seq2seq import SpadeForSeq2Seq


def step_traffic(config: RunConfig, group: ContextGroup) -> int:
    """Bytes that this rank sends to the others for the micro-batches of a step."""
    train, traffic = config.train, Traffic()
    torch.manual_seed(0)
    model = SpadeForSeq2Seq(config.model).train()
    model.set_activation_checkpointing(
        ActivationCheckpointing(
            train.activation_checkpointing, train.activation_checkpointing_every_layers
        )
    )
    objective = config.data.make_objective()
    counting = dataclasses.replace(group, traffic=traffic)
    part = ContextPart.of(counting, objective.input_length_tokens)
    ids = torch.ones(train.micro_batch_size, part.tokens.stop - part.tokens.start).long()
    labels = torch.ones(train.micro_batch_size, objective.target_length_tokens).long()
    for _ in range(config.accumulation_steps(group.size)):
        with torch.autocast("cpu", torch.bfloat16, enabled=train.precision == "bf16"):
            loss = model(ids, labels, attention_mask=torch.ones_like(ids).bool(), part=part).loss
        loss.backward()
    return traffic.sent_bytes


def _rank(rank: int, config: RunConfig, store: Path) -> None:
    torch.set_num_threads(1)
    size = config.parallel.context
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    assert dist.group.WORLD is not None
    found = step_traffic(config, ContextGroup.of(dist.group.WORLD))
    store.with_suffix(f".{rank}").write_text(str(found), encoding="utf-8")
    dist.destroy_process_group()


def main() -> int:
    """Returns 0 if every rank ended well."""
    folder, failed = Path(sys.argv[1]), False
    for number, text in enumerate(sys.argv[2:]):
        config, children = RunConfig.from_dict(json.loads(text)), []
        for rank in range(config.parallel.context):
            child = os.fork()
            if child == 0:
                _rank(rank, config, folder / f"{number}.store")
                os._exit(0)
            children.append(child)
        failed |= any(os.waitpid(child, 0)[1] != 0 for child in children)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
