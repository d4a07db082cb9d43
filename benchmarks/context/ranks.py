"""A function on several processes of one thread each, which share sequences."""

from __future__ import annotations

import ctypes
import datetime
import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from benchmarks.context.options import Options
from spade_model.context_parallel.group import ContextGroup

_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES = -3, 2**20
"""Of glibc's mallopt. Left alone, it keeps freed blocks of up to 32 MiB for later: a process with a
quarter of the text, whose tensors are below that, then holds more than a quarter of the memory."""
_LONGEST_WAIT = datetime.timedelta(hours=2)
"""Of one process for another, which may train another network meanwhile."""

Measurement = Callable[[ContextGroup, Options], dict[str, Any]]


def run_on_ranks(measurement: Measurement, size: int, options: Options) -> list[dict[str, Any]]:
    """Call a function on every rank of a fresh group.

    Args:
        measurement: Of a module, so that processes find it. Returns what JSON can say.
        size: Ranks of the group.
        options: Its second argument.

    Returns:
        What it returned on each rank.

    Raises:
        torch.multiprocessing.ProcessRaisedException: It failed on a rank; the others were ended.
    """
    # Processes are forked from one that has imported all they need, and done nothing with it.
    multiprocessing.set_forkserver_preload([measurement.__module__, __name__])
    with TemporaryDirectory(prefix="spade-benchmarks-context-") as name:
        folder = Path(name)
        arguments = (measurement, size, options, folder)
        start_processes(_rank, arguments, nprocs=size, start_method="forkserver")
        return [json.loads(_answer(folder, rank).read_text()) for rank in range(size)]


def _answer(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.json"


def _rank(rank: int, measurement: Measurement, size: int, options: Options, folder: Path) -> None:
    torch.set_num_threads(1)
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'store'}",
        rank=rank,
        world_size=size,
        timeout=_LONGEST_WAIT,
    )
    assert dist.group.WORLD is not None
    found = measurement(ContextGroup.of(dist.group.WORLD), options)
    _answer(folder, rank).write_text(json.dumps(found))
    dist.destroy_process_group()
