"""One long document through training steps, on more and more processes."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from benchmarks.common.machine import PeakMemory
from benchmarks.common.report import Table
from benchmarks.context.options import Options
from benchmarks.context.ranks import run_on_ranks
from benchmarks.model.machine import measure
from spade_model.activation_checkpointing import ActivationCheckpointing
from spade_model.config import SpadeConfig
from spade_model.context_parallel.gradients import average_gradients
from spade_model.context_parallel.group import ContextGroup
from spade_model.context_parallel.part import ContextPart
from spade_model.seq2seq import SpadeForSeq2Seq

_WARM_UP_TOKENS = 256
"""Of each rank: libraries are loaded by use, and should not count as memory of the document."""


def train_document(group: ContextGroup, options: Options) -> dict[str, Any]:
    """Train on a document of which this rank has a part.

    Returns:
        ``losses`` of the whole document, ``wall`` and ``cpu`` seconds of each step, and
        ``extra_bytes``, the peak of this process above weights and imports.
    """
    torch.manual_seed(options.seed)
    config = SpadeConfig(**options.model, trained_length_tokens=options.training_tokens)
    model = SpadeForSeq2Seq(config).train()
    model.set_activation_checkpointing(ActivationCheckpointing("full"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    document = torch.randint(2, config.vocab_size, (1, options.training_tokens))
    labels = torch.randint(2, config.vocab_size, (1, options.target_tokens))
    losses: list[float] = []

    def backward(tokens: int) -> float:
        part = ContextPart.of(group, tokens)
        loss = model(document[:, part.tokens], labels, part=part).loss
        loss.backward()
        average_gradients(model.parameters(), group)
        return float(loss.detach())

    def step() -> None:
        losses.append(backward(options.training_tokens))
        optimizer.step()
        optimizer.zero_grad()

    backward(min(options.training_tokens, _WARM_UP_TOKENS * group.size))
    optimizer.zero_grad()
    with PeakMemory() as peak:
        taken = [measure(step) for _ in range(options.training_steps)]
    return {
        "losses": losses,
        "wall": [x.wall for x in taken],
        "cpu": [x.cpu for x in taken],
        "extra_bytes": peak.extra_bytes,
    }


def training_tables(options: Options) -> list[Table]:
    """Train the same network on the same document with each number of processes."""
    rows: list[dict[str, Any]] = []
    first: tuple[float, list[float]] | None = None
    for size in options.training_ranks:
        ranks = run_on_ranks(train_document, size, options)
        losses, peak = ranks[0]["losses"], max(x["extra_bytes"] for x in ranks)
        first = first or (peak * size, losses)
        steps = zip(*(x["cpu"] for x in ranks), strict=True)
        differences = [abs(x / y - 1) for x, y in zip(losses, first[1], strict=True)]
        rows.append(
            {
                "processes": size,
                "tokens of each": -(-options.training_tokens // size),
                "peak MiB of each": peak / 2**20,
                "/ one process": peak / first[0],
                "1 / processes": 1 / size,
                "s/step (clock)": statistics.median(ranks[0]["wall"]),
                "CPU s/step of all": statistics.median(sum(x) for x in steps),
                "first loss": round(losses[0], 6),
                "last loss": round(losses[-1], 6),
                "difference of losses": max(differences),
                "equal on all ranks": all(x["losses"] == losses for x in ranks),
            }
        )
    notes = (
        "forward, backward, AdamW, activation checkpointing of whole layers",
        "peak: resident memory above imports and weights, of the process that has most",
        "freed blocks of a MiB and more go back at once",
        "gradients, AdamW's moments and buffers of messages are part of it and do not shrink",
        f"{options.training_steps} steps, medians; more processes than cores take turns",
        "difference of losses: the largest of a step, relative to the first row",
    )
    title = f"A document of {options.training_tokens:,} tokens in training steps"
    return [Table("training", title, rows, notes)]
