"""DeepSpeed's own JSON, made from a run's configuration."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pretrain.config import RunConfig
from pretrain.errors import ConfigError

# Sections and switches of DeepSpeed that change nothing this project decides.
_PASSED_THROUGH = frozenset(
    {
        "zero_optimization",
        "aio",
        "comms_logger",
        "communication_data_type",
        "dump_state",
        "flops_profiler",
        "gradient_predivide_factor",
        "memory_breakdown",
        "prescale_gradients",
        "wall_clock_breakdown",
    }
)
# What this project does itself, and the setting to use instead.
_OURS = {
    "activation_checkpointing": "train.activation_checkpointing",
    "amp": "train.precision",
    "bf16": "train.precision",
    "checkpoint": "checkpoint",
    "csv_monitor": "telemetry",
    "curriculum_learning": "train.curriculum",
    "data_efficiency": "train.curriculum",
    "data_types": "train.precision",
    "fp16": "train.precision",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "tensorboard": "telemetry",
    "wandb": "telemetry",
}


def deepspeed_config(
    config: RunConfig, world_size: int, *, device_type: str = "cpu"
) -> dict[str, Any]:
    """DeepSpeed's own JSON for a run.

    bf16 and fp16 are torch's autocast: parameters and their optimizer state stay float32, so the
    state-space parameters keep their precision without being named (bfloat16 storage would move a
    time step by up to 1.6 %). The empty list keeps the reduction of gradients in float32 too.

    Clipping at stage 0 and the scale of the loss are done by `TrainingEngine`.

    Raises:
        ConfigError: If the global batch cannot be cut evenly over the ranks, or `deepspeed.raw`
            holds an unknown key or one that another setting decides.
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
    _check_raw(settings.raw, result)
    return _merged(result, settings.raw)


def _place(config: RunConfig, place: str, device_type: str) -> dict[str, Any]:
    # Pinned memory speeds up copies to a GPU; for a CPU DeepSpeed would compile a kernel for it.
    result: dict[str, Any] = {"device": place, "pin_memory": device_type == "cuda"}
    if place == "nvme":
        result["nvme_path"] = str(config.deepspeed.nvme_folder)
    return result


def _check_raw(raw: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for key, value in raw.items():
        if key in _OURS:
            raise ConfigError(
                f"deepspeed.raw.{key} is not passed on; this project's {_OURS[key]} does that"
            )
        if key in ours and key != "zero_optimization":
            raise ConfigError(f"deepspeed.raw.{key} is decided by other settings; remove it")
        if key not in _PASSED_THROUGH:
            near = difflib.get_close_matches(key, sorted(_PASSED_THROUGH), n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {sorted(_PASSED_THROUGH)}"
            raise ConfigError(f"deepspeed.raw.{key} is not a key of DeepSpeed's; {hint}")
        if key == "zero_optimization":
            _check_zero(value, ours[key])


def _check_zero(raw: Any, ours: Mapping[str, Any]) -> None:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"deepspeed.raw.zero_optimization is {raw!r}; give it keys and values")
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    fields = DeepSpeedZeroConfig.model_fields
    known = sorted({*fields, *(field.alias for field in fields.values() if field.alias)})
    for key in raw:
        name = f"deepspeed.raw.zero_optimization.{key}"
        if key in ours or key in ("offload_optimizer", "offload_param", "stage"):
            raise ConfigError(f"{name} is decided by the other settings of deepspeed; remove it")
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else "see DeepSpeed's documentation"
            raise ConfigError(f"{name} is not a key of DeepSpeed's; {hint}")


def _merged(ours: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(ours)
    for key, value in raw.items():
        old = result.get(key)
        result[key] = {**old, **value} if isinstance(old, dict) else value
    return result
