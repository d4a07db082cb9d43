"""The processes of one run: this one alone, or one for each GPU under torchrun."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed

from finetune.errors import FinetuneError

T = TypeVar("T")


def world_size() -> int:
    """Number of processes that a launcher such as torchrun has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number among all, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this is the process that writes files and speaks."""
    return rank() == 0


def join() -> None:
    """Join the other processes, by DeepSpeed; alone this is a group of one.

    DeepSpeed would compile a kernel here on a CPU, which only its inference calls: it is marked as
    not available, so that no compiler is needed.
    """
    _name_this_process()
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    # What torch says to DeepSpeed about names that will change is nothing to our user.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    logging.getLogger("accelerate").setLevel(logging.ERROR)  # warns that it takes our word
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        deepspeed.init_distributed("nccl", verbose=False)
        return
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", verbose=False)


def _name_this_process() -> None:
    """Say that this process is all there is, if no launcher has said otherwise."""
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(
        {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    )


def wait_for_all() -> None:
    """Return when all processes have come here."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def any_process(answer: bool) -> bool:
    """Whether any process says so; all must ask."""
    if not torch.distributed.is_initialized():
        return answer
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    flag = torch.tensor(int(answer), device=device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())


def gather(part: T) -> list[T]:
    """Return what each process has, in the order of their ranks; all must give theirs."""
    if not torch.distributed.is_initialized():
        return [part]
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, part)
    return parts


def on_first(action: Callable[[], T]) -> T:
    """Do something in the first process alone; all get its result, or its refusal.

    Raises:
        FinetuneError: The action failed in a way that the user can mend.
    """
    if not torch.distributed.is_initialized():
        return action()
    outcome: list[tuple[bool, object]] = [(False, "")]
    if is_first():
        try:
            outcome = [(True, action())]
        except (ValueError, OSError) as error:
            outcome = [(False, str(error))]
    torch.distributed.broadcast_object_list(outcome, src=0)
    succeeded, result = outcome[0]
    if not succeeded:
        raise FinetuneError(str(result))
    return cast(T, result)
