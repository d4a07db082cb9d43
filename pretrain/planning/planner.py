"""What a run will be, before it is started: shown by ``spade pretrain CONFIG --dry-run``."""

from __future__ import annotations

from typing import Any

from pretrain.config import RunConfig
from pretrain.engine.deepspeed_config import deepspeed_config
from pretrain.planning.run_shape import run_memory
from spade_model.cost import count_parameters, training_flops_per_sample


def describe(
    config: RunConfig, world_size: int = 1, *, device_type: str = "cuda"
) -> dict[str, Any]:
    """The resolved configuration with what follows from it.

    Memory is that of one rank; `spade plan` says more, and for other machines.

    Args:
        config: The run.
        world_size: Number of processes it will have.
        device_type: ``cuda`` or ``cpu``: what it will run on.

    Raises:
        ConfigError: If the batch cannot be cut evenly over the processes.
    """
    objective = config.data.make_objective()
    train = config.train
    lengths = (objective.input_length_tokens, objective.target_length_tokens)
    memory = run_memory(config, world_size, device_type)
    tokens_per_step = train.global_batch_size * objective.window_tokens
    flops_per_step = train.global_batch_size * training_flops_per_sample(config.model, *lengths)
    return {
        "configuration": config.to_dict(),
        "deepspeed": deepspeed_config(config, world_size, device_type=device_type),
        "processes": world_size,
        "parameters": count_parameters(config.model).total,
        "window_tokens": objective.window_tokens,
        "target_length_tokens": objective.target_length_tokens,
        "tokens_per_step": tokens_per_step,
        "tokens_in_run": tokens_per_step * train.max_steps,
        "flops_per_step": flops_per_step,
        "estimated_memory_bytes": {**memory.device, "total": memory.device_bytes},
    }
