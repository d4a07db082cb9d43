"""Joining the process group, the one way this project uses DeepSpeed."""

from __future__ import annotations

import os
from typing import Literal

import torch


def start_processes(
    device: torch.device,
    *,
    deterministic: bool = False,
    matrix_product_precision: Literal["ieee", "tf32"] = "ieee",
) -> None:
    """Join the process group; the rendezvous variables must be set.

    DeepSpeed would compile a shared-memory kernel with g++ here on a CPU (one to three minutes the
    first time, and an error without a compiler). Only its inference all-reduce calls that kernel,
    so it is marked as not available and the start needs no compiler.

    Args:
        device: This rank's device.
        deterministic: Allow only kernels that give the same bits every time.
        matrix_product_precision: Of float32 matrix products and convolutions on GPUs.
    """
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    if deterministic:
        # cuBLAS reads this when it starts; without it torch refuses its matrix products.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cuda.matmul.fp32_precision = matrix_product_precision
    torch.backends.cudnn.conv.fp32_precision = matrix_product_precision  # type: ignore[attr-defined]
    import deepspeed

    if device.type == "cuda":
        torch.cuda.set_device(device)
        deepspeed.init_distributed("nccl", verbose=False)
        return
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", verbose=False)
