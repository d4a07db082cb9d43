"""The checkpoint a run goes on from: the newest one whose every byte is as written."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from pretrain.checkpoints.checkpoint_format import (
    checksum_problems,
    folder_name,
    list_checkpoints,
    read_manifest,
)
from pretrain.errors import CheckpointError
from pretrain.run_folder import RunFolder


def agree_on_resumable(
    run: Path, *, rank: int, world_size: int, group: dist.ProcessGroup | None
) -> tuple[Path | None, list[str]]:
    """The newest sound checkpoint, looked for by all ranks: each reads a part of its files.

    Args:
        run: The run's folder, on a file system that all ranks share.
        rank: Of this process.
        world_size: Number of ranks.
        group: A gloo group of all ranks; none for one rank.

    Returns:
        Its path, or none, the same on every rank; and what this rank found wrong with newer ones.
    """
    passed_over: list[str] = []
    bound = 1 << 62
    while True:
        step = -1
        if rank == 0:
            # Rank 0 alone lists: two hosts may see a shared folder at different moments.
            for info in reversed(list_checkpoints(run)):
                if info.step < bound and info.problem is not None:
                    passed_over.append(info.problem)
                elif info.step < bound:
                    step = info.step
                    break
        step = _sum_of_ranks(step if rank == 0 else 0, world_size, group)
        if step < 0:
            return None, passed_over
        path = RunFolder(run).checkpoints / folder_name(step)
        try:
            problems = checksum_problems(path, read_manifest(path), rank, world_size)
        except CheckpointError as error:
            problems = [str(error)]
        passed_over += problems[:1]
        if not _sum_of_ranks(len(problems), world_size, group):
            return path, passed_over
        bound = step


def _sum_of_ranks(number: int, world_size: int, group: dist.ProcessGroup | None) -> int:
    shared = torch.tensor([number], dtype=torch.int64)
    if world_size > 1:
        dist.all_reduce(shared, group=group)
    return int(shared.item())
