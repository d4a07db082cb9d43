"""Which of DeepSpeed's own keys a configuration may pass on, and which are decided elsewhere."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

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
# Decided by the other settings of the run.
_DECIDED = frozenset(
    {
        "gradient_accumulation_steps",
        "gradient_clipping",
        "steps_per_print",
        "torch_autocast",
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
    }
)
_DECIDED_OF_ZERO = frozenset({"offload_optimizer", "offload_param", "overlap_comm", "stage"})


def check_raw(raw: Mapping[str, Any]) -> None:
    """Refuse keys that DeepSpeed does not have, or that another setting decides.

    Raises:
        ValueError: One line: the key and what to use instead.
    """
    for key, value in raw.items():
        name = f"deepspeed.raw.{key}"
        if key in _OURS:
            raise ValueError(f"{name} is not passed on; this project's {_OURS[key]} does that")
        if key in _DECIDED:
            raise ValueError(f"{name} is decided by other settings; remove it")
        if key not in _PASSED_THROUGH:
            raise ValueError(
                f"{name} is not a key of DeepSpeed's; {_nearest(key, _PASSED_THROUGH)}"
            )
        if key == "zero_optimization":
            _check_zero(value)


def _check_zero(raw: Any) -> None:
    if not isinstance(raw, Mapping):
        raise ValueError(f"deepspeed.raw.zero_optimization is {raw!r}; give it keys and values")
    # Only DeepSpeed knows its keys; it takes seconds to import, so only where it is asked.
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    fields = DeepSpeedZeroConfig.model_fields
    known = {*fields, *(field.alias for field in fields.values() if field.alias)}
    for key in raw:
        name = f"deepspeed.raw.zero_optimization.{key}"
        if key in _DECIDED_OF_ZERO:
            raise ValueError(f"{name} is decided by the other settings of deepspeed; remove it")
        if key not in known:
            raise ValueError(f"{name} is not a key of DeepSpeed's; {_nearest(key, known)}")


def _nearest(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, sorted(known), n=1)
    return f"did you mean {near[0]}?" if near else "see DeepSpeed's documentation"
