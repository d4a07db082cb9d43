"""What the machine is, and how fast it could be."""

from __future__ import annotations

import functools
import os
import platform
import resource
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from pretrain.planning.devices import device_of_gpu
from pretrain.ranks import Ranks


def pick_device(local_rank: int) -> torch.device:
    """This rank's GPU, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    return torch.device("cpu")


def peak_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """The rate against which utilisation is stated.

    A known GPU's data-sheet figure for bf16; otherwise the rate of a large matrix product, measured
    on this device in well under a second.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        known = device_of_gpu(torch.cuda.get_device_name(device))
        if known is not None and "bf16" in known.peak_flops_per_second:
            return known.peak_flops_per_second["bf16"]
    size = 4096 if device.type == "cuda" else 768
    left = torch.randn(size, size, device=device, dtype=dtype)
    right = torch.randn(size, size, device=device, dtype=dtype)
    best_seconds = float("inf")
    for _ in range(5):
        _synchronize(device)
        start = time.perf_counter()
        left @ right
        _synchronize(device)
        best_seconds = min(best_seconds, time.perf_counter() - start)
    return 2 * size**3 / best_seconds


def available_memory_bytes(device: torch.device) -> int:
    """Memory of this rank's device: the whole GPU, or the host's memory and what limits it."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit > 0]
    return min([int(psutil.virtual_memory().total), *limits])


def describe_environment(ranks: Ranks, device: torch.device) -> dict[str, Any]:
    """Versions, machine and processes of a run, as plain data."""
    import deepspeed

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "deepspeed": deepspeed.__version__,
        "platform": platform.platform(),
        "host": platform.node(),
        "processor_cores": os.cpu_count(),
        "memory_bytes": int(psutil.virtual_memory().total),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processes": ranks.world_size,
        "launcher": ranks.launcher,
        "threads_per_process": torch.get_num_threads(),
        "code_version": code_version(),
    }


@functools.cache
def code_version() -> str:
    """The commit this code was checked out at, or the package's version outside a checkout."""
    from importlib.metadata import PackageNotFoundError, version

    root = Path(__file__).resolve().parent.parent
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
        try:
            found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            found = None
        if found is not None and found.returncode == 0:
            return found.stdout.strip()
    try:
        return version("spade-pretrain")
    except PackageNotFoundError:
        return "unknown"


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
