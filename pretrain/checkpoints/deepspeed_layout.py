"""A checkpoint's weights as DeepSpeed lays them out, for its own tools such as ``zero_to_fp32``.

Whatever wrote the checkpoint, the result has the layout of ZeRO stage 2 on as many ranks: all
parameters one after another in one float32 vector, cut evenly. It holds weights and buffers, and
nothing of the optimizer: with it DeepSpeed's tools consolidate, and nobody trains on.
"""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pretrain.checkpoints.checkpoint_format import verify_checkpoint
from pretrain.checkpoints.reader import CheckpointReader
from pretrain.checkpoints.snapshot import WEIGHT
from pretrain.errors import CheckpointError

_ZERO_STAGE = 2


@dataclass(frozen=True)
class DeepSpeedFolder:
    """What was written."""

    path: Path
    tag: str
    """The folder inside, which `latest` names."""
    ranks: int
    size_bytes: int


def write_deepspeed_folder(checkpoint: Path, out: Path) -> DeepSpeedFolder:
    """Write what ``python -m deepspeed.utils.zero_to_fp32 OUT WEIGHTS`` reads.

    No more is in memory at a time than one rank's part of the weights.

    Args:
        checkpoint: A complete one.
        out: A folder that does not exist; it appears when it is whole.

    Raises:
        CheckpointError: If the checkpoint is damaged, `out` exists, or the disk refuses; nothing is
            left then.
    """
    if out.exists() or out.is_symlink():
        raise CheckpointError(f"{out}: exists; choose another --out or remove it")
    problems = verify_checkpoint(checkpoint)
    if problems:
        raise CheckpointError(f"{problems[0]}; take an earlier checkpoint of the run")
    reader = CheckpointReader(checkpoint)
    tag = f"global_step{reader.manifest['step']}"
    partial = out.with_name(f"{out.name}.{os.getpid()}.partial")
    try:
        folder = partial / tag
        folder.mkdir(parents=True)
        _save(_model_states(reader), folder / "mp_rank_00_model_states.pt")
        ranks = reader.manifest["world_size"]
        for rank in range(ranks):
            file = f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
            _save(_optimizer_states(reader, rank, ranks), folder / file)
        (partial / "latest").write_text(tag, encoding="utf-8")
        size_bytes = sum(file.stat().st_size for file in folder.iterdir())
        partial.rename(out)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"{out}: not written: {error.strerror or error}; free space or mend permissions"
        ) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return DeepSpeedFolder(out, tag, ranks, size_bytes)


def _model_states(reader: CheckpointReader) -> dict[str, Any]:
    """Names, shapes, buffers; frozen parameters count among the buffers."""
    parameters = reader.manifest["parameters"]
    buffers = [name for name in reader.names if name not in parameters]
    return {
        "module": {name: reader.read_full(name) for name in buffers},
        "buffer_names": buffers,
        "param_shapes": [{name: torch.Size(shape) for name, shape in parameters.items()}],
        "frozen_param_shapes": None,
        "frozen_param_fragments": None,
        "shared_params": reader.manifest["tied"],
        "global_steps": reader.manifest["step"],
    }


def _optimizer_states(reader: CheckpointReader, rank: int, ranks: int) -> dict[str, Any]:
    """One rank's part of the vector of all weights, zeros behind its end."""
    parameters = reader.manifest["parameters"]
    total = sum(map(math.prod, parameters.values()))
    # DeepSpeed starts each rank's part at a multiple of two elements.
    part = 2 * math.ceil(total / (2 * ranks))
    first, last = rank * part, (rank + 1) * part
    vector = torch.zeros(part)
    begin = 0
    for name, shape in parameters.items():
        length = math.prod(shape)
        start, stop = max(first, begin), min(last, begin + length)
        if start < stop:
            values = reader.read_slice(WEIGHT, name, start - begin, stop - start)
            vector[start - first : stop - first] = values
        begin += length
    return {
        "optimizer_state_dict": {
            "zero_stage": _ZERO_STAGE,
            "partition_count": ranks,
            "single_partition_of_fp32_groups": [vector],
        }
    }


def _save(content: dict[str, Any], path: Path) -> None:
    """Write a file as torch does.

    Raises:
        OSError: If the disk refuses.
    """
    try:
        torch.save(content, path)
    except RuntimeError as error:  # torch knows no other class for a full disk
        raise OSError(" ".join(str(error).split())) from error
