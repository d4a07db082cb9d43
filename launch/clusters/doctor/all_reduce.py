"""One rank of the measurement of an all-reduce: ``python -m …doctor.all_reduce cpu|cuda``.

Reads its place from the environment as every rank does; rank 0 prints one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta

# float32 numbers: 4 B tell the latency, the others the bandwidth.
_NUMBERS = (1, 2**18, 2**22, 2**24)
_REPEATS = 5
# On a slow network the next larger message is left out rather than waited for.
_LONGEST_MESSAGE_SECONDS = 0.5
_MEET_SECONDS = 60


def main(kind: str) -> int:
    """Meet the others, add up some tensors, tell how long it took.

    Args:
        kind: cpu or cuda; the same for all ranks, whatever their machines have.
    """
    import torch
    import torch.distributed as dist

    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device(kind)
    if kind == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    backend = "nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=_MEET_SECONDS))
    sizes = []
    for numbers in _NUMBERS:
        seconds = _measure(torch.ones(numbers, device=device))
        sizes.append({"bytes": 4 * numbers, "seconds": seconds})
        if seconds > _LONGEST_MESSAGE_SECONDS:
            break
    dist.destroy_process_group()
    if rank == 0:
        print(json.dumps({"backend": backend, "ranks": world_size, "sizes": sizes}), flush=True)
    return 0


def _measure(tensor: object) -> float:
    """Seconds of one all-reduce: the fastest of some on the slowest rank, the same on all ranks."""
    import torch
    import torch.distributed as dist

    assert isinstance(tensor, torch.Tensor)
    best_seconds = float("inf")
    for _ in range(_REPEATS):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(tensor)
        if tensor.is_cuda:
            torch.cuda.synchronize()
        elapsed = torch.tensor([time.perf_counter() - start], device=tensor.device)
        dist.all_reduce(elapsed, op=dist.ReduceOp.MAX)
        best_seconds = min(best_seconds, float(elapsed))
        if best_seconds > _LONGEST_MESSAGE_SECONDS:
            break
    return best_seconds


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
