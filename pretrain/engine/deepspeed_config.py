"""DeepSpeed's own JSON, made from a run's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pretrain.config import RunConfig


def deepspeed_config(
    config: RunConfig, world_size: int, *, device_type: str = "cpu"
) -> dict[str, Any]:
    """DeepSpeed's own JSON for a run.

    bf16 and fp16 are torch's autocast: parameters and their optimizer state stay float32, so the
    state-space parameters keep their precision without being named (bfloat16 storage would move a
    time step by up to 1.6 %). The empty list keeps the reduction of gradients in float32 too.

    Clipping at stage 0 and the scale of the loss are done by `TrainingEngine`.

    Raises:
        ConfigError: If the global batch cannot be cut evenly over the ranks.
    """
    settings = config.deepspeed
    sharded = settings.zero_stage > 0
    micro_batch_size = config.train.micro_batch_size
    accumulation_steps = config.most_accumulation_steps(world_size)
    zero: dict[str, Any] = {"stage": settings.zero_stage}
    if sharded:
        # A CPU has one stream: there is nothing to overlap with.
        zero["overlap_comm"] = settings.overlap_communication and device_type == "cuda"
    if settings.offload_optimizer != "none":
        zero["offload_optimizer"] = _place(config, settings.offload_optimizer, device_type)
    if settings.offload_parameters != "none":
        zero["offload_param"] = _place(config, settings.offload_parameters, device_type)
    result: dict[str, Any] = {
        "train_batch_size": micro_batch_size * world_size * accumulation_steps,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps,
        "gradient_clipping": config.train.gradient_clipping if sharded else 0.0,
        "zero_optimization": zero,
        "steps_per_print": 2**31 - 1,
        # DeepSpeed's own CPU optimizer would have to be compiled; torch's is as exact.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
    }
    if config.train.precision != "fp32":
        result["torch_autocast"] = {
            "enabled": True,
            "dtype": "bfloat16" if config.train.precision == "bf16" else "float16",
            "lower_precision_safe_modules": [],
        }
    return _merged(result, settings.raw)


def _place(config: RunConfig, place: str, device_type: str) -> dict[str, Any]:
    # Pinned memory speeds up copies to a GPU; for a CPU DeepSpeed would compile a kernel for it.
    result: dict[str, Any] = {"device": place, "pin_memory": device_type == "cuda"}
    if place == "nvme":
        result["nvme_path"] = str(config.deepspeed.nvme_folder)
    return result


def _merged(ours: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(ours)
    for key, value in raw.items():
        old = result.get(key)
        result[key] = {**old, **value} if isinstance(old, dict) else value
    return result
