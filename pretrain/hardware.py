"""What the machine is, and how fast it could be."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from pretrain.ranks import Ranks

# Dense bf16 rates in FLOP/s from the makers' data sheets (without sparsity).
_GPU_PEAK_FLOPS_PER_SECOND = {
    "B200": 2.25e15,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
    "V100": 125e12,
    "MI300X": 1307e12,
}


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
        name = torch.cuda.get_device_name(device)
        for key, peak in _GPU_PEAK_FLOPS_PER_SECOND.items():
            if key in name:
                return peak
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


def memory_in_use_bytes(device: torch.device) -> int:
    """Peak GPU memory of this process, or its resident memory on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


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
