"""DeepSpeed, started the one way this project uses it."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from pretrain.config import RunConfig
from pretrain.optimization.parameter_groups import parameter_groups


def deepspeed_config(config: RunConfig, world_size: int) -> dict[str, Any]:
    """DeepSpeed's own JSON for a run.

    bf16 is torch's autocast: parameters and their optimizer state stay float32, so the state-space
    parameters keep their precision without being named (bfloat16 storage would move a time step
    by up to 1.6 %). The empty list keeps the reduction of gradients in float32 too.

    Raises:
        ConfigError: If the global batch cannot be cut evenly over the ranks.
    """
    accumulation_steps = config.accumulation_steps(world_size)
    result: dict[str, Any] = {
        "train_batch_size": config.train.global_batch_size,
        "train_micro_batch_size_per_gpu": config.train.micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps,
        "gradient_clipping": config.train.gradient_clipping,
        "zero_optimization": {"stage": config.deepspeed.zero_stage},
        "steps_per_print": 2**31 - 1,
    }
    if config.train.precision == "bf16":
        result["torch_autocast"] = {
            "enabled": True,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        }
    return result


def start_processes(device: torch.device, *, deterministic: bool = False) -> None:
    """Join the process group; the rendezvous variables must be set.

    DeepSpeed would compile a shared-memory kernel with g++ here on a CPU (one to three minutes the
    first time, and an error without a compiler). Only its inference all-reduce calls that kernel,
    so it is marked as not available and the start needs no compiler.

    Args:
        device: This rank's device.
        deterministic: Allow only kernels that give the same bits every time.
    """
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    if deterministic:
        # cuBLAS reads this when it starts; without it torch refuses its matrix products.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    import deepspeed

    if device.type == "cuda":
        torch.cuda.set_device(device)
        deepspeed.init_distributed("nccl", verbose=False)
        return
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", verbose=False)


def build_engine(model: nn.Module, config: RunConfig, world_size: int, device: torch.device) -> Any:
    """Wrap a model for training.

    Args:
        model: Float32 module with the same weights on every rank.
        config: The run.
        world_size: Number of ranks.
        device: This rank's device.

    Returns:
        A ``deepspeed.DeepSpeedEngine`` whose optimizer is ZeRO around torch's AdamW.
    """
    import deepspeed

    optimizer = torch.optim.AdamW(
        parameter_groups(model, config.optimizer),
        lr=config.optimizer.learning_rate,
        betas=config.optimizer.betas,
        eps=config.optimizer.epsilon,
        fused=True,
    )
    engine, *_ = deepspeed.initialize(
        model=model.to(device),
        optimizer=optimizer,
        config=deepspeed_config(config, world_size),
    )
    return engine


def set_learning_rates(engine: Any, factor: float) -> dict[str, float]:
    """Set every group's rate to its base times a factor.

    Returns:
        The rates by group name.
    """
    rates = {}
    for group in engine.optimizer.param_groups:
        group["lr"] = group["base_learning_rate"] * factor
        rates[group["name"]] = group["lr"]
    return rates
