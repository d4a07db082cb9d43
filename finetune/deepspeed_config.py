"""DeepSpeed's own JSON for fine-tuning."""

from __future__ import annotations

from typing import Any

GRADIENT_CLIPPING = 1.0
"""Largest norm of all gradients of a step, with DeepSpeed and without."""


def deepspeed_config(
    *,
    zero_stage: int,
    micro_batch_size: int,
    accumulation_steps: int,
    processes: int,
    bfloat16: bool,
    on_gpu: bool,
) -> dict[str, Any]:
    """Return the configuration of one training.

    bfloat16 is torch's autocast: weights and optimizer states stay float32, and with them the state
    space, whose time steps would not survive the rounding. The empty list keeps the reduction of
    gradients in float32 too.

    Args:
        zero_stage: 0, 1 or 2.
        micro_batch_size: Rows that a process takes at once.
        accumulation_steps: Micro-batches of a step on each process.
        processes: Number of processes.
        bfloat16: Whether activations are bfloat16.
        on_gpu: Whether the processes have GPUs.
    """
    zero: dict[str, Any] = {"stage": zero_stage}
    if zero_stage > 0:
        zero["overlap_comm"] = on_gpu  # a CPU has one stream: nothing to overlap with
    config: dict[str, Any] = {
        "train_batch_size": micro_batch_size * accumulation_steps * processes,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps,
        "gradient_clipping": GRADIENT_CLIPPING,
        "zero_optimization": zero,
        "steps_per_print": 2**31 - 1,
        # DeepSpeed's own CPU optimizer would have to be compiled; torch's is as exact.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
    }
    if bfloat16:
        config["torch_autocast"] = {
            "enabled": True,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        }
    return config
